"""Settings of the merges that linearise the scores in the coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bounds.types import refuse
from merging.learned import LearnedSettings
from merging.params import Granularity


@dataclass(frozen=True, kw_only=True)
class TangentSettings:
    """Settings of the merge of the NTK regime: one linearisation, solved to its optimum."""

    granularity: Granularity = "tensor"
    """One coefficient per task and ... task, block or tensor."""
    examples: int = 64
    """k: unlabelled calibration examples of each task."""
    damping: float = 1e-6
    """μ: weight of ½‖λ - init‖² in the convex problem; above 0, so that its optimum is unique."""
    rho: float = 0.0
    """ρ: radius of the sharpness penalty ρ²/(2 T L) tr GGN(λ), the mean rise of the KL on ‖ε‖ = ρ; 0 leaves it out."""
    temperature: float = 1.0
    """Temperature u of the distillation: scores are divided by it on both sides."""
    init: float | None = 0.0
    """Coefficient at which the scores are linearised: 0 is θ_0; none is 1/T, plain averaging."""
    seed: int = 0
    """Seed of the choice of examples and of their order."""

    def __post_init__(self) -> None:
        self.learned()
        if not 0 < self.damping < math.inf:
            refuse("damping", expected="a positive number", got=self.damping, cure="raise it")

    def learned(self) -> LearnedSettings:
        """Return the settings that it shares with the learned merges, checked by them."""
        return LearnedSettings(
            perturbation="none",
            rho=self.rho,
            granularity=self.granularity,
            examples=self.examples,
            temperature=self.temperature,
            init=self.init,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class GaussNewtonSettings(TangentSettings):
    """Settings of Gauss-Newton on the coefficients."""

    damping: float = 1e-2
    """μ at the start."""
    least_damping: float = 1e-2
    """μ never falls below this: an example known along one cotangent constrains λ less than it should."""
    init: float | None = None
    """Initial value of every coefficient; by default 1/T, plain averaging."""
    iterations: int = 104
    """Most iterations."""
    batch: int | None = 4
    """Examples of each task visited in an iteration; none visits all."""
    cotangents: int | None = 1
    """VJPs per visit of an example; none takes all C - 1, which makes its Jacobian exact."""
    check: int | None = 1
    """Visited examples of each task on which a step is checked; none checks on all that were visited."""
    tolerance: float = 1e-3
    """Stop when the mean loss of a sweep through the examples is not below this share less than the sweep before."""
    attempts: int = 8
    """Stop after so many candidates of one iteration were refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "attempts"):
            if getattr(self, name) < 1:
                refuse(name, expected="at least 1", got=getattr(self, name), cure="raise it")
        for name in ("batch", "cotangents", "check"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                refuse(name, expected="at least 1, or none for all", got=getattr(self, name), cure="raise it")
        if not 0 <= self.least_damping < math.inf:
            refuse("least_damping", expected="a number >= 0", got=self.least_damping, cure="set it to 0 or more")
        if not 0 <= self.tolerance < 1:
            refuse("tolerance", expected="a number in [0, 1)", got=self.tolerance, cure="lower it")
