"""What every format hands over, and which columns of a table are the inputs and the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bounds.types import refuse
from merging.data.examples import Pairs
from merging.data.source import Source

SPLIT = "split"
"""The column that says which split a row is of."""
TEXTS = ("text", "sentence")
IMAGES = ("image", "img")
"""Columns that are found by themselves where the source names none."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A data set as a format reads it: ``inputs`` and ``labels`` as they stand there, N rows each.

    ``names`` are class names that the data brings along; ``where(row)`` is how an error calls a row; ``files`` all
    files that were read, under ``root``; ``notes`` what a user should be told.
    """

    inputs: Sequence[Any]
    labels: Sequence[Any] | None
    where: Callable[[int], str]
    files: tuple[Path, ...]
    names: tuple[str, ...] | None = None
    root: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format: the suffixes of its files (of a folder: none), how it is read, what a file or folder of it looks like.

    ``recognised`` is asked where no suffix tells the format.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, Source], Columns]
    recognised: Callable[[Path], bool] = lambda path: False


@dataclass(frozen=True)
class Chosen:
    """Columns of a table: one or two of texts or one of images, labels, splits."""

    inputs: tuple[str, ...]
    image: bool
    label: str | None
    split: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.inputs, *(column for column in (self.label, self.split) if column))


def choose(source: Source, there: Sequence[str], what: str) -> Chosen:
    """Return which of the columns that are ``there`` the source means.

    Raises:
        InputError: a column that is not there, or none named where it is not plain which one is meant.
    """
    inputs = source.texts or ((source.image,) if source.image else ())
    if not inputs:
        found = [column for column in (*TEXTS, *IMAGES) if column in there]
        pair = [column for column in there if column in ("text_pair", "sentence2")]
        if len(found) != 1 or pair:
            cure = "name it, e.g. text: sentence, text: [premise, hypothesis] or image: img"
            refuse(what, expected="the column of texts or images by name", got=f"columns {listed(there)}", cure=cure)
        inputs = (found[0],)
    for column in inputs:
        if column not in there:
            missing(what, column, there, "name one of these with text or image")
    if source.label is not None and source.label not in there:
        missing(what, source.label, there, "name one of these with label, or write label: null where there are none")
    if source.split is not None and SPLIT not in there:
        cure = f"leave split {source.split!r} out, or name a file that has the column"
        missing(what, SPLIT, there, cure)
    image = source.image is not None or (inputs[0] in IMAGES and not source.texts)
    return Chosen(inputs, image, source.label, SPLIT if source.split is not None else None)


def texts(columns: Sequence[Sequence[str]]) -> Sequence[Any]:
    """Return one column of texts as it is, two as pairs."""
    return columns[0] if len(columns) == 1 else Pairs(columns[0], columns[1])


def missing(what: str, column: str, there: Sequence[str], cure: str) -> NoReturn:
    """Refuse a column that is not there.

    Raises:
        InputError: always.
    """
    refuse(what, expected=f"a column {column!r}", got=f"columns {listed(there)}", cure=cure)


def listed(names: Sequence[str]) -> str:
    """Return names in a few words."""
    shown = ", ".join(map(str, list(names)[:12]))
    return f"{shown}, … ({len(names)} in all)" if len(names) > 12 else shown or "none"


def checked_text(value: Any, where: str, column: str) -> str:
    """Return a text.

    Raises:
        InputError: something else, or half of a surrogate pair in it, which no tokenizer takes.
    """
    if isinstance(value, str):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            got = "half a surrogate pair"
    else:
        got = "nothing" if value is None else type(value).__name__
    return refuse(where, expected=f"text in column {column!r}", got=got, cure="correct the row or take it out")
