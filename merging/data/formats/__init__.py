"""Formats of data: a file of this folder with ``FORMATS`` adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from merging.data.columns import Format

FORMATS: Mapping[str, Format] = {
    name: format
    for found in iter_modules(__path__)
    for name, format in getattr(import_module(f"{__name__}.{found.name}"), "FORMATS", {}).items()
}

__all__ = ["FORMATS"]
