"""Post-processings of a merge, whatever row made it. A file of this folder with ``ROWS`` is in the table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from merging.rows import PostProcessing

ROWS: Mapping[str, PostProcessing] = {
    name: row
    for found in iter_modules(__path__)
    for name, row in getattr(import_module(f"{__name__}.{found.name}"), "ROWS", {}).items()
}

__all__ = ["ROWS"]
