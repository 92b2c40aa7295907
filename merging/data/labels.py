"""Labels as they stand in a file -> class numbers int64 [N], with the names of the classes where they are known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bounds.types import refuse
from merging.data.source import Source

_WHOLE = re.compile(r"\s*[-+]?\d+\s*")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?\s*")
_MISSING = ("", "nan", "na", "n/a", "null", "none")
UNLABELLED = "give every example its class, or write label: null where there are no labels"


def class_numbers(
    values: Sequence[Any], source: Source, names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels int64 [N] and class names (None: not known).

    Whole numbers (or texts that all are) stay as they are. Names are numbered in the order of ``source.classes``, else
    of the alphabet. Where the data names its classes itself (``names``), ``source.classes`` may put these in another
    order, or give every class another name; a mixture of both is refused.

    Args:
        values: N numbers or texts.
        source: whose labels; its ``classes`` are the user's.
        names: class names that the data brings along, in the order of its numbers.
        where: row -> how an error calls it: the file and the line.

    Raises:
        InputError: a label that is missing, a fraction, out of range, or no number among numbers.
    """
    plain = [_plain(value, row, where) for row, value in enumerate(values)]
    texts = [row for row, value in enumerate(plain) if isinstance(value, str)]
    if texts and len(texts) < len(plain):
        odd = texts[0] if 2 * len(texts) <= len(plain) else next(r for r, v in enumerate(plain) if type(v) is int)
        _refuse(where(odd), "labels of one kind, numbers or names", repr(plain[odd]), "write all of them alike")
    if texts:
        return _of_texts([str(value) for value in plain], source, names, where)
    return _of_numbers([int(value) for value in plain], source, names, where)


def _of_texts(
    values: list[str], source: Source, names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...] | None]:
    known = source.classes or (tuple(names) if names else None)
    if known is None or any(value not in known for value in values):
        for row, value in enumerate(values):
            _check_text(value, row, known, where)
        if all(_WHOLE.fullmatch(value) for value in values):
            return _of_numbers([int(value) for value in values], source, names, where)
    known = known or tuple(sorted(set(values)))
    number = {name: index for index, name in enumerate(known)}
    for row, value in enumerate(values):
        if value not in number:
            cure = "correct the label, or list every class in classes"
            _refuse(where(row), f"one of the classes {_listed(known)}", repr(value[:60]), cure)
    return torch.tensor([number[value] for value in values], dtype=torch.int64), known


def _check_text(value: str, row: int, known: Sequence[str] | None, where: Callable[[int], str]) -> None:
    """Refuse a text that stands for no label, or for a fraction, unless it is the name of a class."""
    if known is not None and value in known:
        return
    if value.strip().lower() in _MISSING:
        _refuse(where(row), "a label", repr(value) if value else "nothing", UNLABELLED)
    if _NUMBER.fullmatch(value):
        _refuse(where(row), "a class number or name", f"the fraction {value.strip()}", "write class numbers as 0, 1, 2")


def _of_numbers(
    values: list[int], source: Source, names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...] | None]:
    count = len(names or source.classes or ()) or None
    for row, value in enumerate(values):
        if value < 0 or (count is not None and value >= count) or value >= 2**31:
            expected = f"a label in 0..{count - 1}" if count else "a class number >= 0"
            cure = UNLABELLED if value == -1 else "count classes from 0, and list every class in classes"
            _refuse(where(row), expected, value, cure)
    labels = torch.tensor(values, dtype=torch.int64)
    if not names or not source.classes or (source.renamed and len(names) == len(source.classes)):
        return labels, source.classes or (tuple(names) if names else None)
    if set(names) == set(source.classes):
        return torch.tensor([source.classes.index(name) for name in names], dtype=torch.int64)[labels], source.classes
    if len(names) != len(source.classes) or set(names) & set(source.classes):
        expected = f"the classes {_listed(tuple(names))} in any order, or as many other names"
        cure = "write all of them as the data does, or none"
        _refuse(f"classes of data {source.name}", expected, _listed(source.classes), cure)
    return labels, source.classes


def _plain(value: Any, row: int, where: Callable[[int], str]) -> int | str:
    """Return one label as Python's int or str."""
    if isinstance(value, (np.ndarray, Tensor)) and math.prod(value.shape) != 1:
        got, cure = f"{math.prod(value.shape)} numbers", "of a one-hot matrix take the largest entry's index"
        _refuse(where(row), "one label", got, cure)
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        value = value.item()
    if isinstance(value, (bool, int, str)):
        return value if isinstance(value, str) else int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        _refuse(where(row), "a label", "nothing" if value is None else "nan", UNLABELLED)
    if isinstance(value, float):
        _refuse(where(row), "a class number or name", f"the fraction {value}", "write class numbers as 0, 1, 2")
    return _refuse(where(row), "a class number or name", f"a {type(value).__name__}", "name another column with label")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:6]))
    return f"{shown}, … ({len(names)})" if len(names) > 6 else shown


def _refuse(where: str, expected: str, got: object, cure: str) -> NoReturn:
    refuse(f"label, {where}" if not where.startswith("classes") else where, expected=expected, got=got, cure=cure)
