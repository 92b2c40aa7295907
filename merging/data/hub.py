"""Data sets of the library ``datasets``: a folder of ``save_to_disk``, a name of the hub, or a folder it can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.data.arrow import inputs
from merging.data.columns import Columns, choose, listed
from merging.data.source import Source

MARKS = ("dataset_dict.json", "state.json")
"""What ``save_to_disk`` leaves in a folder."""
PACKAGE = "pip install 'mergebound[hub]'"


def saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any((path / mark).is_file() for mark in MARKS)


def read(source: Source, folder: Path) -> Columns:
    """Read a split of a data set; the library keeps it in mapped files.

    Args:
        source: with ``dataset``, or a ``path`` that :func:`saved` knows.
        folder: that names of folders are relative to.

    Raises:
        InputError: not there and no network, an unknown split, a missing column; the package is not installed.
    """
    what = f"data set {source.name}"
    table = _split(_loaded(source, folder / Path(source.name).expanduser(), what), source, what)
    if len(table) == 0:
        refuse(what, expected="rows with examples", got="none", cure="name another split")
    chosen = choose(_without_split(source), table.column_names, what)
    own = getattr(table.features.get(chosen.label), "names", None) if chosen.label else None
    raw = _undecoded(table, chosen.inputs[0]) if chosen.image else table
    raw = raw.select_columns(list(chosen.inputs))

    def where(row: int) -> str:
        return f"{what}{f', split {source.split}' if source.split else ''}, row {row}"

    return Columns(
        inputs=inputs(chosen, len(table), lambda column, row: raw[row][column], where),
        labels=table[chosen.label][:] if chosen.label else None,
        where=where,
        files=tuple(dict.fromkeys(Path(entry["filename"]) for entry in table.cache_files)),
        names=tuple(own) if own else None,
        root=None,
    )


def _without_split(source: Source) -> Source:
    """Return the source without its split, which here is no column."""
    names = ("path", "dataset", "config", "text", "image", "label", "format", "classes")
    return Source(**{name: getattr(source, name) for name in names})


def _loaded(source: Source, place: Path, what: str) -> Any:
    try:
        import datasets
    except ImportError:
        refuse(what, expected="the package datasets", got="not installed", cure=PACKAGE)
    try:
        if saved(place):
            return datasets.load_from_disk(str(place))
        name = str(place) if place.is_dir() else source.name
        return datasets.load_dataset(name, source.config, split=source.split)
    except ValueError as error:
        cure = "correct the config or split"
        refuse(what, expected="a configuration and split that it has", got=_line(error), cure=cure)
    except (OSError, RuntimeError) as error:  # ConnectionError, DatasetNotFoundError, a folder without data
        cure = "check the name; without a network, name a folder of save_to_disk, or load it once where there is one"
        refuse(what, expected="a data set in the cache, in a folder or on the hub", got=_line(error), cure=cure)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _split(loaded: Any, source: Source, what: str) -> Any:
    """Return the table of the split."""
    if not isinstance(loaded, dict):
        own = str(loaded.split) if loaded.split is not None else None
        if source.split is not None and own is not None and source.split != own and "[" not in source.split:
            refuse(what, expected=f"split {source.split!r}", got=f"split {own!r} only", cure="correct split")
        return loaded
    if source.split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if source.split not in loaded:
        got = f"splits {listed(list(loaded))}"
        refuse(
            what, expected=f"split {source.split!r}" if source.split else "a split", got=got, cure="name one of these"
        )
    return loaded[source.split]


def _undecoded(table: Any, column: str) -> Any:
    """Return the table with the bytes of its images instead of decoded ones."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table
