"""Merges in closed form, row by row: no gradient, no learning. A file of this folder with ``ROWS`` is in the table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from merging.closed_form import regression, slerp, sparse, spectral, uniform
from merging.rows import Method

_FAMILIES = (uniform, sparse, spectral, slerp, regression)
_ADDED = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
ROWS: Mapping[str, Method] = {
    name: row
    for family in dict.fromkeys((*_FAMILIES, *_ADDED))  # families in the order of the table, then any other file
    for name, row in getattr(family, "ROWS", {}).items()
}

__all__ = ["ROWS"]
