"""Parquet files: columns of texts, or of images as the hub writes them; read by row groups, never as a whole."""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.data.arrow import inputs
from merging.data.columns import Columns, Format, choose
from merging.data.examples import Taken
from merging.data.source import Source


class _Groups:
    """A file's row groups, of which the last one that was used is held."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._file, self._columns, self._path = open_file(path), list(columns), path
        metadata = self._file.metadata
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        self._held: tuple[int, Any] = (-1, None)

    def value(self, column: str, row: int) -> Any:
        """Return a value as Python's."""
        number = bisect_right(self._ends, row)
        if self._held[0] != number:
            self._held = (number, _guarded(self._path, lambda: self._file.read_row_group(number, self._columns)))
        start = self._ends[number - 1] if number else 0
        return self._held[1][column][row - start].as_py()

    def column(self, name: str) -> list[Any]:
        """Return a whole column as Python's values."""
        return _guarded(self._path, lambda: self._file.read([name]))[name].to_pylist()


def read(path: Path, source: Source) -> Columns:
    """Read the wanted columns.

    Raises:
        InputError: no parquet file, a missing column, no rows; pyarrow is not installed.
    """
    file = open_file(path)
    chosen = choose(source, file.schema_arrow.names, f"data {path}")
    rows = _Groups(path, chosen.inputs)
    wanted: range | list[int] = range(file.metadata.num_rows)
    if chosen.split:
        splits = rows.column(chosen.split)
        wanted = [row for row, split in enumerate(splits) if split == source.split]
        if splits and not wanted:
            got, cure = ", ".join(sorted({str(name) for name in splits})[:8]), "name another split"
            refuse(f"data {path}", expected=f"rows of split {source.split!r}", got=f"splits {got}", cure=cure)
    if not wanted:
        refuse(f"data {path}", expected="rows with examples", got="none", cure="name another file")
    labels = rows.column(chosen.label) if chosen.label else None
    found = inputs(chosen, file.metadata.num_rows, rows.value, lambda row: f"data {path}, row {row}")
    return Columns(
        inputs=Taken(found, wanted) if chosen.split else found,
        labels=[labels[row] for row in wanted] if labels is not None else None,
        where=lambda row: f"data {path}, row {wanted[row]}",
        files=(path,),
        names=class_names(file.schema_arrow.metadata or {}, chosen.label),
        root=path.parent,
    )


def open_file(path: Path) -> Any:
    """Open a parquet file.

    Raises:
        InputError: something else; pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        cure = "pip install 'mergebound[hub]'"
        refuse(f"data {path}", expected="the package pyarrow", got="not installed", cure=cure)
    return _guarded(path, lambda: parquet.ParquetFile(path, memory_map=True))


def _guarded(path: Path, action: Any) -> Any:
    try:
        return action()
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        got, cure = str(error).split("\n")[0][:100], "copy the file again"
        refuse(f"data {path}", expected="a whole parquet file", got=got, cure=cure)


def class_names(metadata: dict[bytes, bytes], label: str | None) -> tuple[str, ...] | None:
    """Return the names of the classes, where the library ``datasets`` has written them into the file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _recognised(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


FORMATS = {"parquet": Format((".parquet",), read, _recognised)}
