"""Defaults of the rows beside SAMerging, and the settings that only they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bounds.types import refuse
from merging.learned.settings import LearnedSettings


@dataclass(frozen=True)
class AdaMergingSettings(LearnedSettings):
    """Settings of AdaMerging: the entropy of the merge, no expert consulted, the paper's start and learning rate."""

    objective: str = "entropy"
    perturbation: str = "none"
    init: float | None = 0.3
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class TaskWiseSettings(AdaMergingSettings):
    """Settings of task-wise AdaMerging: one coefficient per task."""

    granularity: str = "task"  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class TrimmedSettings(AdaMergingSettings):
    """Settings of AdaMerging++: AdaMerging on trimmed, sign-elected task vectors."""

    density: float = 0.2
    """Share of each task vector's entries that TIES keeps, the largest in size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            refuse("density", expected="a share in (0, 1]", got=self.density, cure="e.g. 0.2")


@dataclass(frozen=True)
class ProDistillSettings(LearnedSettings):
    """Settings of layer-by-layer distillation; steps are per layer."""

    GRANULARITIES: ClassVar[tuple[str, ...]] = ("entry", "tensor", "block")
    objective: str = "squared"
    perturbation: str = "none"
    granularity: Literal["entry", "tensor", "block"] = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride]
    """One coefficient per task and ... entry of a task vector (as published), tensor or block (a layer)."""
    steps: int = 30
    """Optimiser steps of each layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective != "squared":
            refuse(
                "objective of layer-by-layer distillation",
                expected="squared",
                got=repr(self.objective),
                cure="layers are distilled one after the other, on their outputs",
            )
        if self.perturbation == "ggn-trace":
            refuse(
                "perturbation", expected="a row without scores", got="ggn-trace", cure="layers have outputs, not scores"
            )


@dataclass(frozen=True, kw_only=True)
class EntrySettings(ProDistillSettings):
    """Settings of ProDistill as it is published: a coefficient per entry, the released code's start, batch and rate."""

    granularity: Literal["entry", "tensor", "block"] = "entry"
    init: float | None = 0.3
    batch: int = 16
    learning_rate: float = 1e-2
    steps: int = 100
    """Optimiser steps of each layer."""


@dataclass(frozen=True)
class SingleLayerSettings(LearnedSettings):
    """Settings of the SyMerge-like row: coefficients everywhere and the weights of one layer."""

    objective: str = "cross-entropy"
    perturbation: str = "none"
    layer: str | None = None
    """The layer whose weights adapt: a block of merging.params.partition(..., "block"); by default the last one."""
    layer_learning_rate: float = 1e-4
    """Adam's learning rate on the weights of that layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_learning_rate < float("inf"):
            refuse("layer_learning_rate", expected="a positive number", got=self.layer_learning_rate, cure="e.g. 1e-4")


@dataclass(frozen=True)
class RankSettings(AdaMergingSettings):
    """Settings of AdaRank: AdaMerging with a mask on the singular components of every matrix of every task."""

    steps: int = 300
    """Optimiser steps."""
    mask_learning_rate: float = 1e-2
    """Adam's learning rate on the mask's numbers, which start 0.1 above or below the threshold (released: 1e-3)."""
    kept: float = 1.0
    """Share of the min(rows, columns) components of each matrix that are in at the start, the largest."""
    centred: bool = False
    """Start from the average of the experts, and mask what each differs from it (CART, arXiv 2412.12153)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_learning_rate < float("inf"):
            refuse("mask_learning_rate", expected="a positive number", got=self.mask_learning_rate, cure="e.g. 1e-2")
        if not 0 <= self.kept <= 1:
            refuse("kept", expected="a share in [0, 1]", got=self.kept, cure="e.g. 1")


@dataclass(frozen=True, kw_only=True)
class FrankWolfeSettings(LearnedSettings):
    """Settings of Frank-Wolfe merging: few steps on many examples, each towards one expert, tensor by tensor."""

    objective: str = "cross-entropy"
    perturbation: str = "none"
    optimizer: str = "frank-wolfe"
    steps: int = 10
    """Steps."""
    batch: int = 64
    """Examples of each task in a step."""
    init: float | None = 0.3
    learning_rate: float = 0.3
