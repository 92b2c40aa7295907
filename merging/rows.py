"""What a row of the table of methods is, and of the table of post-processings; what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bounds.types import Blocks, Params
from merging.task import SPLITS, Split

Item = TypeVar("Item")
Progress = Callable[[Iterable[int], str], Iterable[int]]
"""Wraps an iterable of steps to show how far it is: (steps, description) -> the same steps."""


def silent(steps: Iterable[Item], description: str) -> Iterable[Item]:
    """Show nothing."""
    return steps


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What a method's builder returns.

    ``coefficients`` [T, L] with their ``blocks`` where the merge is θ_0 + Σ_t λ_t τ_t, otherwise None. ``candidates``
    is the number of fixed models that were compared on the validation labels, of which the merge is one; None where it
    was not such a choice.
    """

    params: Params
    coefficients: torch.Tensor | None = None
    blocks: Blocks | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)
    candidates: int | None = None


NOTHING: frozenset[Split] = frozenset()
CALIBRATION: frozenset[Split] = frozenset({"calibration"})
VALIDATION: frozenset[Split] = frozenset({"validation"})
"""What rows need."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What rows of both tables say: settings, paper, cost, and the splits they need whatever their settings.

    ``choice`` names the setting that the row chooses on labels where it is not given.
    """

    settings: type
    paper: str
    needs: frozenset[Split] = NOTHING
    cost: str = ""
    network: str = ""
    choice: str = "scale"

    def needs_of(self, settings: object) -> frozenset[Split]:
        """Return the splits needed with these settings, whose class may have a property ``needs`` of its own."""
        return self.needs | getattr(settings, "needs", NOTHING)

    @property
    def needs_text(self) -> str:
        """What the row needs with its default settings, in words."""
        always, default = self.needs, self.needs_of(self.settings())
        words = [_WORDS[split] for split in SPLITS if split in always]
        words += [f"{_WORDS[split]}, or a {self.choice}" for split in SPLITS if split in default - always]
        return "; ".join([*(words or ["nothing"]), *([self.network] if self.network else [])])


@dataclass(frozen=True, kw_only=True)
class Method(_Row):
    """A row: its builder, its settings, where it comes from, what it needs, what it costs.

    ``build(task_vectors, tasks, settings, progress)`` merges; rows with ``executes`` take an
    :class:`~merging.execution.Execution` after these. ``needs`` are the splits it needs whatever its settings; the
    tasks that the builder is given hold these and those that its settings ask for, and no others (:meth:`needs_of`).
    ``network`` says what it demands of the network. ``breaks`` names the laws (tests/laws.py) that the method breaks
    by its definition, each with the reason; ``tasks`` is the number of tasks it merges, None for any.
    """

    build: Callable[..., Merge]
    breaks: Mapping[str, str] = field(default_factory=dict)
    executes: bool = False
    tasks: int | None = None


@dataclass(frozen=True, kw_only=True)
class PostProcessing(_Row):
    """What may follow any row: ``build(merge, task_vectors, tasks, settings, progress)`` returns the changed merge.

    The tasks hold the splits that it or the row needs. ``coefficients`` of the result are those of its weights, or None
    where these are no longer θ_0 + Σ_t λ_t τ_t; ``candidates`` counts the models that it compared itself.
    """

    build: Callable[..., Merge]


_WORDS: Mapping[Split, str] = {
    "train": "labelled training examples",
    "calibration": "unlabelled calibration examples",
    "validation": "labelled validation",
    "test": "labelled test examples",
}


@dataclass(frozen=True)
class NoSettings:
    """A method without settings."""
