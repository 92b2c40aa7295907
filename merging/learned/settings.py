"""Settings of a merge whose coefficients are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from bounds.types import meant, refuse
from merging.learned.objectives import OBJECTIVES
from merging.learned.optimizers import AVERAGES, OPTIMIZERS, SCHEDULES
from merging.learned.perturbations import PERTURBATIONS
from merging.params import Granularity

TOP_K = 64
"""Classes of a teacher's that are told apart at a position, by default."""


@dataclass(frozen=True, kw_only=True)
class LearnedSettings:
    """Settings of a merge whose coefficients are learned."""

    GRANULARITIES: ClassVar[tuple[str, ...]] = get_args(Granularity)
    """Values of granularity that the row knows."""
    objective: str = "kl"
    """What is minimised on the expert's scores: kl, reverse-kl, jensen-shannon, cross-entropy (to the expert's most
    likely class), squared (on scores) or entropy (of the merge, AdaMerging)."""
    perturbation: str = "coefficients"
    """Where the gradient is taken (passes per step): none (1); SAM in λ: coefficients (2), coefficients-adaptive (2);
    SAM in θ: weights (2); momentum (1), look (1 + 1/k), friendly (2), gap (2); penalties: gradient-norm (2),
    ggn-trace (4); Gaussian noise: random in λ (1), random-weights in θ (1)."""
    optimizer: str = "adam"
    """Optimiser of λ: adam, adamw, sgd (momentum 0.9) or frank-wolfe (in the hull of the experts and the start)."""
    average: str = "none"
    """Average of λ over the steps that is merged: none (last λ), ema (which has a decay) or swa (second half of the
    steps)."""
    average_decay: float = 0.95
    """Decay of the average ema."""
    rho: float = 0.07
    """Radius ρ of the perturbation, in the norm of the space it acts in; random noise: its standard deviation (in θ
    relative to the root mean square of each block of θ_0); penalties: radius of their finite difference."""
    penalty: float = 0.01
    """Weight c of the penalty of gradient-norm and ggn-trace."""
    every: int = 5
    """k: the perturbation look takes its second pass every k-th step."""
    granularity: Granularity = "tensor"
    """One coefficient per task and ... task, block or tensor."""
    steps: int = 60
    """Optimiser steps."""
    batch: int = 8
    """Examples of each task in a step."""
    cached: int = 0
    """Number of batches that are made once and gone through again and again; 0 draws a new batch every step."""
    examples: int | None = 64
    """Unlabelled calibration examples of each task; None for as many as every task has."""
    learning_rate: float = 2e-2
    """Learning rate on λ; of frank-wolfe the first step, as a share of the way."""
    schedule: str = "constant"
    """How the learning rate on λ goes on: constant, or cosine (falls from its value to zero over the steps)."""
    weight_decay: float = 0.0
    """Weight decay on λ (decoupled for adamw, L2 for the others)."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the tasks' losses become one: their mean, or their sum, against which the same weight decay is weaker."""
    clamp: bool = False
    """Keep every coefficient in [0, 1] after each step."""
    temperature: float = 1.0
    """Temperature u of the distillation: scores are divided by it on both sides."""
    top_k: int | None = TOP_K
    """Of a teacher that scores every position (language models): how many of its likeliest classes are told apart, all
    others being one; None for all. Read by tasks with scores per position alone."""
    init: float | None = None
    """Initial value of every coefficient; by default 1/T, plain averaging."""
    seed: int = 0
    """Seed of the choice of examples and of the batches."""

    def __post_init__(self) -> None:
        rows = (
            ("objective", OBJECTIVES),
            ("perturbation", PERTURBATIONS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("average", ("none", *AVERAGES)),
            ("granularity", self.GRANULARITIES),
            ("reduction", ("mean", "sum")),
        )
        for name, table in rows:
            if (given := getattr(self, name)) not in table:
                refuse(name, expected=" or ".join(table), got=repr(given), cure=meant(str(given), table))
        for name, least in (("steps", 1), ("batch", 1), ("every", 1), ("cached", 0)):
            if getattr(self, name) < least:
                refuse(name, expected=f"at least {least}", got=getattr(self, name), cure="raise it")
        if self.examples is not None and self.examples < 1:
            refuse("examples", expected="at least 1, or None for all", got=self.examples, cure="raise it")
        if self.top_k is not None and self.top_k < 1:
            refuse("top_k", expected="at least 1, or None for all", got=self.top_k, cure="raise it")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                refuse(name, expected="a positive number", got=getattr(self, name), cure="raise it")
        for name in ("rho", "weight_decay", "penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, expected="a number >= 0", got=getattr(self, name), cure="set it to 0 or more")
        if self.perturbation in ("gradient-norm", "ggn-trace") and self.rho == 0:
            refuse("rho", expected=f"a positive radius for {self.perturbation}", got=0, cure="raise it")
        if not 0 <= self.average_decay < 1:
            refuse("average_decay", expected="a number in [0, 1)", got=self.average_decay, cure="e.g. 0.95")
        if self.init is not None and not math.isfinite(self.init):
            refuse("init", expected="a finite number", got=self.init, cure="leave it out for 1/T")


DECIDING = ("perturbation", "average")
"""Settings whose value decides which of the others are read."""


def idle(settings: object) -> Mapping[str, str]:
    """Return the settings that nothing reads with these values, each with the one of DECIDING that decides it.

    Args:
        settings: of any method; those of methods that learn nothing are read whatever their values are.
    """
    if not isinstance(settings, LearnedSettings):
        return {}
    read = {
        "rho": ("perturbation", settings.perturbation != "none"),
        "penalty": ("perturbation", settings.perturbation in ("gradient-norm", "ggn-trace")),
        "every": ("perturbation", settings.perturbation == "look"),
        "average_decay": ("average", settings.average == "ema"),
    }
    return {name: by for name, (by, acts) in read.items() if not acts}


PER_POSITION = ("top_k",)
"""Settings that tasks with scores per position read, and no others."""
