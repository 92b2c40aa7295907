"""Suites: ready-made experts with their tasks. A file of this folder with a function ``suite`` is one, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules

from bounds.types import refuse
from merging.suites.base import Suite
from merging.task_vectors import Storage

_FILES = (found.name for found in iter_modules(__path__) if "_" not in found.name)  # with one: parts of a suite
SUITES: Mapping[str, Callable[[Storage], Suite]] = {
    name: module.suite for name in _FILES if hasattr(module := import_module(f"{__name__}.{name}"), "suite")
}


def load(name: str, storage: Storage | None = None) -> Suite:
    """Load a suite by name; ``storage`` is the precision and place of its task vectors.

    Raises:
        InputError: unknown name, or a suite whose files are missing or damaged.
    """
    if name not in SUITES:
        refuse("suite", expected=" or ".join(SUITES), got=repr(name), cure="choose one")
    return SUITES[name](storage or Storage())


__all__ = ["SUITES", "Suite", "load"]
