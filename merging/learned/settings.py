"""Settings of a merge whose coefficients are learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from bounds.types import refuse
from merging.objectives import OBJECTIVES
from merging.params import Granularity
from merging.perturbations import PERTURBATIONS


@dataclass(frozen=True)
class LearnedSettings:
    """Settings of a merge whose coefficients are learned."""

    objective: str = "kl"
    """Row of merging.objectives.OBJECTIVES: kl."""
    perturbation: str = "coefficients"
    """Where SAM perturbs: none, coefficients, coefficients-adaptive or weights."""
    rho: float = 0.07
    """Radius ρ of the perturbation, in the norm of the space it acts in."""
    granularity: Granularity = "tensor"
    """One coefficient per task and ... task, block or tensor."""
    steps: int = 60
    """Optimiser steps."""
    batch: int = 8
    """Examples of each task in a step."""
    examples: int = 64
    """k: unlabelled calibration examples of each task."""
    learning_rate: float = 2e-2
    """Adam's learning rate on λ."""
    weight_decay: float = 0.0
    """Adam's L2 penalty on λ."""
    temperature: float = 1.0
    """Temperature u of the distillation: scores are divided by it on both sides."""
    init: float | None = None
    """Initial value of every coefficient; by default 1/T, plain averaging."""
    seed: int = 0
    """Seed of the choice of examples and of the batches."""

    def __post_init__(self) -> None:
        rows = (
            ("objective", OBJECTIVES),
            ("perturbation", PERTURBATIONS),
            ("granularity", get_args(Granularity)),
        )
        for name, table in rows:
            if getattr(self, name) not in table:
                refuse(name, expected=" or ".join(table), got=repr(getattr(self, name)), cure="choose one")
        for name in ("steps", "batch", "examples"):
            if getattr(self, name) < 1:
                refuse(name, expected="at least 1", got=getattr(self, name), cure="raise it")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                refuse(name, expected="a positive number", got=getattr(self, name), cure="raise it")
        for name in ("rho", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, expected="a number >= 0", got=getattr(self, name), cure="set it to 0 or more")
        if self.init is not None and not math.isfinite(self.init):
            refuse("init", expected="a finite number", got=self.init, cure="leave it out for 1/T")
