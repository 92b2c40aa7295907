"""The diagnosis of a merge as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diagnostics.diagnosis.advice import Advice
from diagnostics.diagnosis.changes import Changes
from diagnostics.diagnosis.coefficients import CoefficientMap
from diagnostics.diagnosis.layers import LayerGroup
from diagnostics.diagnosis.verdicts import TaskVerdict
from merging.task_vectors import Geometry


@dataclass(frozen=True)
class LayerChange:
    """A group of layers, and what changes when it is put back to θ_0."""

    group: LayerGroup
    change: Changes


@dataclass(frozen=True)
class ScaleChange:
    """What changes when θ_m - θ_0 is multiplied by ``scale``."""

    scale: float
    change: Changes


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the merge did to every task and what changes it; differences of accuracy in 0..1, errors paired.

    ``tasks`` rest on the whole test split, their words hold together at ``level``. ``without`` (one per expert),
    ``layers`` and ``scales`` rest on ``examples`` and ``layer_examples`` examples a task of the named ``split``.
    ``advice`` are, of ``tried`` other merges, those that improve on that split; empty where it is not validation.
    ``missing`` says what could not be measured, and why.
    """

    level: float
    tasks: tuple[TaskVerdict, ...]
    split: str
    examples: tuple[int, ...]
    layer_examples: tuple[int, ...]
    without: tuple[Changes, ...]
    layers: tuple[LayerChange, ...]
    scales: tuple[ScaleChange, ...]
    coefficients: CoefficientMap | None
    vectors: Geometry
    tried: int
    advice: tuple[Advice, ...]
    missing: Mapping[str, str]

    @property
    def worst(self) -> TaskVerdict:
        """The task with the smallest difference to the pretrained model."""
        return min(self.tasks, key=lambda task: task.difference.value)

    def hurt_most_by(self, task: int) -> int | None:
        """Return the expert whose leaving helps a task most; None where none helps, or it was not measured."""
        gains = [change.tasks[task].value for change in self.without]
        best = max(range(len(gains)), key=gains.__getitem__, default=None)
        return best if best is not None and gains[best] > 0 else None
