"""Columns of Arrow tables, read a row at a time: what parquet files and the library ``datasets`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from merging.data.columns import Chosen, checked_text, texts
from merging.data.images import Images, embedded

Read = Callable[[str, int], Any]
"""(column, row) -> value."""


class TextColumn(Sequence[str]):
    """A column of texts, read when they are asked for; something else in it is refused then."""

    def __init__(self, count: int, read: Read, name: str, where: Callable[[int], str]) -> None:
        self._count, self._read, self._name, self._where = count, read, name, where

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> str:
        row = range(self._count)[row]
        return checked_text(self._read(self._name, row), self._where(row), self._name)


def inputs(chosen: Chosen, count: int, read: Read, where: Callable[[int], str]) -> Sequence[Any]:
    """Return the chosen texts or images; the first row is read at once, so that a wrong column is refused here.

    Raises:
        InputError: the first row is no text, or no image.
    """
    if chosen.image:
        column = chosen.inputs[0]
        found: Sequence[Any] = Images(count, lambda row: embedded(read(column, row), where(row)), where)
    else:
        found = texts([TextColumn(count, read, name, where) for name in chosen.inputs])
    _ = found[0]
    return found
