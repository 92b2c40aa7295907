"""Suites: ready-made experts with their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bounds.types import refuse
from merging.suites import mini8, toy
from merging.suites.base import Suite

SUITES: Mapping[str, Callable[[], Suite]] = {"mini8": mini8.load, "toy": toy.build}


def load(name: str) -> Suite:
    """Load a suite by name.

    Raises:
        InputError: unknown name, or a suite whose files are missing or damaged.
    """
    if name not in SUITES:
        refuse("suite", expected=" or ".join(SUITES), got=repr(name), cure="choose one")
    return SUITES[name]()


__all__ = ["SUITES", "Suite", "load"]
