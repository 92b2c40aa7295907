"""What a row of the table of methods is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bounds.types import Blocks, Params

Item = TypeVar("Item")
Progress = Callable[[Iterable[int], str], Iterable[int]]
"""Wraps an iterable of steps to show how far it is: (steps, description) -> the same steps."""


def silent(steps: Iterable[Item], description: str) -> Iterable[Item]:
    """Show nothing."""
    return steps


@dataclass(frozen=True)
class Merge:
    """What a method's builder returns.

    ``coefficients`` [T, L] with their ``blocks`` where the merge is θ_0 + Σ_t λ_t τ_t, otherwise None.
    """

    params: Params
    coefficients: torch.Tensor | None = None
    blocks: Blocks | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row: its builder, its settings, where it comes from, what it needs, what it costs.

    ``build(task_vectors, tasks, settings, progress)`` merges; rows with ``executes`` take an
    :class:`~merging.execution.Execution` after these. ``breaks`` names the laws (tests/laws.py) that the method breaks
    by its definition, each with the reason; ``tasks`` is the number of tasks it merges, None for any.
    """

    build: Callable[..., Merge]
    settings: type
    paper: str
    needs: str
    cost: str = ""
    breaks: Mapping[str, str] = field(default_factory=dict)
    executes: bool = False
    tasks: int | None = None


@dataclass(frozen=True)
class NoSettings:
    """A method without settings."""
