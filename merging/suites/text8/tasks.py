"""The tasks of the suite: what their classes are called, and where their texts come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """One task; its texts are in ``NAME.jsonl.gz``."""

    class_names: tuple[str, ...]
    """Bare names, in the order of the labels: the zero-shot head is their embeddings."""
    licence: str
    """Of the texts."""
    origin: str
    """Where the texts come from, and what was done to them."""


TASKS: Mapping[str, TextTask] = {}
"""Name -> task, in the suite's order."""
