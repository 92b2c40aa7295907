"""Suites: ready-made experts with their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bounds.types import refuse
from merging.suites import mini8, toy
from merging.suites.base import Suite
from merging.task_vectors import Storage

SUITES: Mapping[str, Callable[[Storage], Suite]] = {
    "mini8": lambda storage: mini8.load(storage=storage),
    "toy": lambda storage: toy.build(storage=storage),
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
