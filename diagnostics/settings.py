"""Settings of a bound report: how many examples and draws each number rests on, and the grids the bound pays for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bounds.types import refuse
from bounds.validation import check_weights

ETA_GRID = tuple(2.0**k for k in range(-8, 2))
"""Absolute grid of the rate η."""
SIGMA_GRID = tuple(1e-4 * 2.0 ** (k / 2) for k in range(27))
"""Absolute grid of σ, ratio 2 in σ²: 1e-4 to 0.82."""
LAMBDA_GRID = tuple(2.0**k for k in range(17))
"""Absolute grid of the common rate Λ of the pooled direct form."""
ANCHORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where on the way from θ_0 to the experts the slack of their own bounds is shown."""
GAMMA = 0.5
"""Smoothness γ of cross-entropy in the scores."""
FLOOR = 0.02
"""The share ε of the uniform distribution in smoothed predictions (19)."""
COEFFICIENT_SCALES = (0.01, 0.3)
"""Absolute list of s in (10) for the priors that are free of data: for merges at such a prior, and for others."""
OWN_SCALE = 0.01
"""s in (16), where it costs nothing: small, so that the randomised merge errs like the merge."""
UNIFORM_PRIORS = ("1/T", "0.3")
"""Data-free prior means of (10), every coefficient alike: plain averaging and the customary scale."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to measure. Every example count is per task."""

    held_out: int = 32
    """Test examples for cross-risk, gradients, kernels K(x, x), transfer error and the sweep."""
    kernel: int = 16
    """Training examples for the trace of the kernel."""
    train: int = 96
    """Training examples for each expert's own risk; the whole sample if it is smaller."""
    draws: int = 64
    """Draws from each linearised posterior, in score space and in pairs of opposite noise."""
    weight_draws: int = 2
    """Draws from each posterior in weight space (assumed-linear reading); each serves a share of the examples."""
    points: int = 9
    """Points of the distance sweep over s in [0, 2]."""
    control_points: int = 3
    """Points of the sweep's control paths (to experts, in a random direction), over s in [0, 2] too."""
    control_experts: int = 8
    """Experts whose path is swept as a control: all, or so many from the nearest to the farthest."""
    gram: int = 0
    """Test examples in the kernel's Gram matrix (spectrum, rank, drift); 0 leaves it out, 16 mean something."""
    hessian: int = 0
    """Test examples for the Hessian in weights and in coefficients; 0 leaves it out, 16 mean something."""
    gibbs_draws: int = 1
    """Draws of the coefficients per validation example in certificate (10); (16) takes one."""
    left_out: int = 100
    """Validation examples on which merges without an expert, scaled or by another method are measured."""
    layer_examples: int = 64
    """Validation examples on which merges with a group of layers at θ_0 are measured."""
    rho: float = 0.05
    """Radius of the sharpness, in weights and in coefficients."""
    tolerance: float = 0.1
    """Residual of the linearisation that ends the NTK radius."""
    resamples: int = 1000
    """Bootstrap resamples of the differences between merges."""
    delta: float = 0.05
    """Probability with which a bound may fail."""
    splits: int = 200
    """How often choosing and reporting halves of the examples are drawn again, for the error of the bound's slack."""
    beta: tuple[str, ...] = ("uniform",)
    """Weights of the experts in (5): uniform; best, the one of least slack by half of the held-out examples (everything
    is then reported on the other half); or a weight for each expert, summing to 1."""
    seed: int = 0
    """Seed of subsamples and draws."""
    labels: bool = True
    """Look at labels; --no-labels: at inputs and experts alone, and say what cannot be said so."""

    def __post_init__(self) -> None:
        least: Mapping[str, int] = {
            "held_out": 4,
            "kernel": 4,
            "train": 2,
            "draws": 2,
            "weight_draws": 1,
            "points": 3,
            "control_points": 2,
            "control_experts": 1,
            "gram": 0,
            "hessian": 0,
            "gibbs_draws": 1,
            "left_out": 2,
            "layer_examples": 2,
            "resamples": 2,
            "splits": 2,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                refuse(name, expected=f"at least {value}", got=getattr(self, name), cure="raise it")
        for name in ("gram", "hessian"):
            if getattr(self, name) == 1:
                refuse(
                    name, expected="0 or at least 2", got=1, cure="one example has no standard error; 16 mean something"
                )
        if self.kernel > self.train:
            refuse("kernel", expected="at most train", got=self.kernel, cure="lower it")
        if self.weight_draws > self.held_out:
            refuse("weight_draws", expected="at most held_out", got=self.weight_draws, cure="lower it")
        for name in ("rho", "tolerance"):
            if not 0 < getattr(self, name) < float("inf"):
                refuse(name, expected="a positive number", got=getattr(self, name), cure="raise it")
        if not self.labels and self.beta == ("best",):
            refuse("beta", expected="uniform or weights without labels", got="best", cure="leave --no-labels out")
        if not 0 < self.delta < 1:
            refuse("delta", expected="a probability in (0, 1)", got=self.delta, cure="0.05 is customary")


def expert_weights(beta: Sequence[str], experts: int) -> tuple[float, ...] | None:
    """Read β: ``uniform``, ``best`` (None: to be chosen), or numbers with commas or spaces between them.

    Raises:
        InputError: another word, or weights that are not one per expert on the simplex.
    """
    words = [word for text in beta for word in text.replace(",", " ").split()]
    if words == ["best"]:
        return None
    if words == ["uniform"]:
        return (1 / experts,) * experts
    try:
        weights = [float(word) for word in words]
    except ValueError:
        expected = f"uniform, best or {experts} weights"
        refuse("beta", expected=expected, got=" ".join(words) or "nothing", cure="e.g. --beta best")
    return check_weights(weights, experts, "beta")
