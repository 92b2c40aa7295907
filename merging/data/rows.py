"""Rows of a text file, one after the other -> columns: only what is wanted is kept."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.data.columns import Chosen, Columns, checked_text, choose, missing, texts
from merging.data.images import image_files
from merging.data.source import Source
from merging.data.texts import Texts


class RowReader:
    """Gathers the wanted columns of a file's rows, with the line (or number) of each.

    Args:
        path: the file.
        source: which columns are wanted.
        there: the columns that the file has.
        unit: what the number of a row counts.
    """

    def __init__(self, path: Path, source: Source, there: Sequence[str], unit: str = "line") -> None:
        self._path, self._source, self._unit = path, source, unit
        self._chosen: Chosen = choose(source, there, f"data {path}")
        self._texts = [Texts() for _ in self._chosen.inputs]
        self._labels: list[Any] = []
        self._splits: list[Any] = []
        self._lines = array("q")

    def add(self, row: Mapping[str, Any], line: int) -> None:
        """Add a row.

        Raises:
            InputError: a column is missing, or its text is none.
        """
        chosen, where = self._chosen, f"data {self._path}, {self._unit} {line}"
        for column in chosen.all:
            if column not in row:
                missing(where, column, list(row), "give every row the same columns")
        if chosen.split and row[chosen.split] != self._source.split:
            self._splits.append(row[chosen.split])
            return
        for column, kept in zip(chosen.inputs, self._texts, strict=True):
            kept.append(checked_text(row[column], where, column))
        if chosen.label:
            self._labels.append(row[chosen.label])
        self._lines.append(line)

    def columns(self) -> Columns:
        """Return the columns.

        Raises:
            InputError: no rows; images that are not there.
        """
        path, lines, unit = self._path, self._lines, self._unit
        if not lines:
            splits = sorted({str(name) for name in self._splits})
            expected = f"rows of split {self._source.split!r}" if splits else "rows with examples"
            got = f"splits {', '.join(splits[:8])}" if splits else "none"
            refuse(f"data {path}", expected=expected, got=got, cure="name another split or file")
        images = [path.parent / name for name in self._texts[0]] if self._chosen.image else []
        return Columns(
            inputs=image_files(images) if self._chosen.image else texts(self._texts),
            labels=self._labels if self._chosen.label else None,
            where=lambda row: f"data {path}, {unit} {lines[row]}",
            files=(path, *dict.fromkeys(images)),
            root=path.parent,
        )
