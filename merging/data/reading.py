"""A source -> its examples: which format a file is of, and its labels as class numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bounds.types import refuse
from merging.data import hub
from merging.data.columns import Columns, Format
from merging.data.examples import Examples, Taken
from merging.data.formats import FORMATS
from merging.data.labels import class_numbers
from merging.data.source import Source
from merging.plain import to_plain


def read(source: Source, folder: Path) -> Examples:
    """Read the examples of a source: labels now, texts and images when they are asked for.

    Args:
        source: what and where.
        folder: that a relative path is relative to, e.g. the one of the file that names the source.

    Raises:
        InputError: whatever is wrong with the data, in one line with file and row.
    """
    if source.dataset is not None:
        return _examples(hub.read(source, folder), source)
    path = folder / Path(str(source.path)).expanduser()
    try:
        if not path.exists():
            cure = "correct path, which is relative to the file that names it"
            refuse(f"data {path}", expected="a file or a folder", got="nothing there", cure=cure)
        if source.format is None and path.is_dir() and hub.saved(path):
            return _examples(hub.read(source, folder), source)
        return _examples(_format(path, source).read(path, source), source)
    except OSError as error:
        cure = "check the file and its permissions"
        refuse(f"data {path}", expected="data that can be read", got=error.strerror or error, cure=cure)


def from_dataset(dataset: Any, class_names: Sequence[str] | None = None) -> Examples:
    """Return the examples of a torch ``Dataset`` (with a length), or of any sequence of pairs (x, y).

    Inputs are ``dataset[i][0]``, made when they are asked for; labels are read once, for which every pair is made.
    Class names are those given, else the data set's ``classes``.

    Raises:
        InputError: no length or items, something else than pairs, labels that are no class numbers.
    """
    what = f"data of type {type(dataset).__name__}"
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        cure = "pass a Dataset with __len__ and __getitem__, or a list of pairs"
        refuse(what, expected="pairs (x, y) by index", got="a stream", cure=cure)
    if len(dataset) == 0:
        refuse(what, expected="rows with examples", got="none", cure="pass a data set that has some")
    labels = []
    for row in range(len(dataset)):
        pair = dataset[row]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            refuse(
                f"{what}, row {row}", expected="a pair (x, y)", got=_shown(pair), cure="return inputs and label only"
            )
        labels.append(pair[1])
    own = class_names if class_names is not None else getattr(dataset, "classes", None)
    source = Source(path=type(dataset).__name__)
    names = tuple(map(str, own)) if own is not None else None
    numbers, names = class_numbers(labels, source, names, lambda row: f"{what}, row {row}")
    return Examples(inputs=_Inputs(dataset), labels=numbers, class_names=names)


class _Inputs(Sequence[Any]):
    """The first of each pair."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Any) -> Any:
        return self.dataset[range(len(self.dataset))[row]][0]


def _shown(value: Any) -> str:
    return f"{len(value)} parts" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


def _examples(columns: Columns, source: Source) -> Examples:
    if len(columns.inputs) == 0:
        refuse(f"data {source.name}", expected="rows with examples", got="none", cure="name another file or split")
    labels, names = None, source.classes or columns.names
    if columns.labels is not None:
        labels, names = class_numbers(columns.labels, source, columns.names, columns.where)
    inputs = columns.inputs
    if source.limit is not None and source.limit < len(inputs):
        rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[: source.limit].sort().values
        inputs, labels = Taken(inputs, rows.tolist()), None if labels is None else labels[rows]
    return Examples(
        inputs=inputs,
        labels=labels,
        class_names=names,
        files=columns.files,
        root=columns.root,
        selection=json.dumps(to_plain(_taken(source)), sort_keys=True),
        notes=columns.notes,
    )


def _taken(source: Source) -> dict[str, Any]:
    """Return what of a source says which inputs were taken."""
    other = ("path", "label", "classes", "renamed", *(("limit",) if source.limit is None else ()))
    return {name: value for name, value in vars(source).items() if name not in other}


def _format(path: Path, source: Source) -> Format:
    """Return the format that the source names, that the suffix tells, or that the content looks like."""
    known = " or ".join(FORMATS)
    if source.format is not None:
        if source.format not in FORMATS:
            refuse(f"format of data {source.name}", expected=known, got=repr(source.format), cure="choose one of these")
        return FORMATS[source.format]
    name = path.name.lower().removesuffix(".gz")
    if path.is_file():
        for format in FORMATS.values():
            if name.endswith(format.suffixes or ("\0",)):
                return format
    for format in FORMATS.values():
        if format.recognised(path):
            return format
    cure = f"say which with format: {known}"
    return refuse(f"data {path}", expected="a file of a known format", got=f"suffix {path.suffix!r}", cure=cure)
