"""One e-value for a weighted mean of bounded quantities, with or without unlabelled inputs (docs/theory.md (14), (15)).

The quantity X of an example is a loss, or the difference of two losses on the same example, in a known range. Every
example contributes one factor, whose mean at the true weighted mean is known in sum; so the product is at most
1/delta with probability 1 - delta, and the means at which it is smaller are a half-line. Nothing is divided by the
number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from bounds.types import refuse
from bounds.validation import check_finite, check_nonnegative, check_positive, check_weights

Side = Literal["upper", "lower"]
SIDES: tuple[Side, ...] = ("upper", "lower")
TOLERANCE = 1e-9
"""Of a limit, in units of the weighted range of X. Limits are rounded outward by twice as much."""
ROUNDING = 1e-9
"""Added to ln(1/delta): more than what rounding can do to a sum of logarithms in float64."""
TINY = 1e-300
"""A factor is not taken below this: its logarithm stays finite."""


@dataclass(frozen=True, kw_only=True)
class BoundedSample:
    """One task's sample: X [n] of every labelled example, in [lower, upper].

    ``predicted`` [n] is g, any guess at X that needs no label, on the same examples; ``unlabelled`` [N] is g on other
    inputs of the same distribution. Both or neither; g in [lower, upper], too.

    Raises:
        InputError: an empty range, no example, values that are not finite or out of range, g without its other half,
            or not one g per labelled example.
    """

    values: Tensor
    lower: float = 0.0
    upper: float = 1.0
    predicted: Tensor | None = None
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        check_positive(self.upper - self.lower, "width of the range [lower, upper]")
        if (self.predicted is None) != (self.unlabelled is None):
            refuse("g", expected="on labelled and unlabelled inputs", got="one of them", cure="pass both or neither")
        for name in ("values", "predicted", "unlabelled"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, self._checked(given.flatten(), name))
        if self.predicted is not None and len(self.predicted) != len(self.values):
            got = f"{len(self.predicted)} for {len(self.values)} examples"
            refuse("predicted", expected="one g per labelled example", got=got, cure="align them")

    def _checked(self, values: Tensor, what: str) -> Tensor:
        values, slack = check_finite(values, what), 1e-9 * (self.upper - self.lower)
        low, high = float(values.min()), float(values.max())
        if low < self.lower - slack or high > self.upper + slack:
            got = f"{low:.6g} to {high:.6g}"
            cure = "a loss without a bound cannot be certified: clip or smooth it (docs/theory.md (19))"
            refuse(what, expected=f"in [{self.lower:.6g}, {self.upper:.6g}]", got=got, cure=cure)
        return values.clamp(self.lower, self.upper)

    @property
    def negated(self) -> BoundedSample:
        """The sample of -X."""
        g, other = (None if t is None else -t for t in (self.predicted, self.unlabelled))
        return replace(self, values=-self.values, lower=-self.upper, upper=-self.lower, predicted=g, unlabelled=other)


@dataclass(frozen=True)
class Constants:
    """What the e-value is free to choose, from anything but the samples that it is then used on.

    ``rate`` is nu > 0; ``offsets`` [T] are guesses of how far each task's mean lies from the weighted mean (they are
    centred when used); ``slope`` l >= 0 is how much of g is subtracted; ``centres`` [T] are guesses of the mean of g.
    Wrong ones cost width, never validity.

    Raises:
        InputError: rate not positive, slope negative, anything not finite.
    """

    rate: float
    offsets: tuple[float, ...]
    slope: float = 0.0
    centres: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_positive(self.rate, "rate nu")
        check_nonnegative(self.slope, "slope l")
        if not all(map(math.isfinite, (*self.offsets, *self.centres))):
            refuse("offsets and centres", expected="finite numbers", got=self, cure="check the data they come from")

    @property
    def negated(self) -> Constants:
        """The constants for -X."""
        return replace(self, offsets=tuple(-o for o in self.offsets), centres=tuple(-c for c in self.centres))


def normalised(alpha: Sequence[float] | Tensor, count: int) -> tuple[float, ...]:
    """Return weights whose sum is 1 to rounding, so that limit and range are those of one mean."""
    weights = check_weights(alpha, count, "alpha")
    return tuple(w / sum(weights) for w in weights)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """ln W(e) = fixed + sum_i times_i ln(1 + b_i (e - x_i)); no factor can be negative from ``least`` on."""

    bets: np.ndarray
    points: np.ndarray
    times: np.ndarray
    fixed: float
    least: float
    bottom: float
    top: float

    def log_evalue(self, mean: float) -> float:
        """Return ln W at a weighted mean."""
        return self.fixed + float(self.times @ np.log(np.maximum(1.0 + self.bets * (mean - self.points), TINY)))


@dataclass(frozen=True)
class Size:
    """Labelled and unlabelled examples of a task."""

    labelled: int
    unlabelled: int


def sizes_of(samples: Sequence[BoundedSample]) -> list[Size]:
    """Return how many labelled and unlabelled examples every task has."""
    return [Size(len(s.values), 0 if s.unlabelled is None else len(s.unlabelled)) for s in samples]


def problem_of(
    samples: Sequence[BoundedSample], weights: Sequence[float], constants: Constants, sizes: Sequence[Size]
) -> Problem:
    """Write (15) out for an upper limit; of other ``sizes`` than the samples', every example counts by the ratio."""
    count, slope = len(samples), constants.slope
    offsets, centres = constants.offsets, constants.centres or (0.0,) * count
    if len(offsets) != count or len(centres) != count:
        refuse(
            "constants", expected=f"for {count} tasks", got=f"for {len(offsets)}", cure="choose them for these tasks"
        )
    middle = sum(w * o for w, o in zip(weights, offsets, strict=True))
    n = sum(size.labelled for size, w in zip(sizes, weights, strict=True) if w)
    bets, points, times, fixed, least = [], [], [], 0.0, -math.inf
    for sample, size, weight, offset, centre in zip(samples, sizes, weights, offsets, centres, strict=True):
        if not weight:
            continue
        bet, shift = constants.rate * weight * n / size.labelled, slope * centre - (offset - middle)
        guessed = slope * _given(sample.predicted).numpy() if slope else 0.0
        points.append(sample.values.numpy() - guessed + shift)
        bets.append(np.full(len(sample.values), bet))
        times.append(np.full(len(sample.values), size.labelled / len(sample.values)))
        least = max(least, sample.upper - slope * sample.lower + shift - 1.0 / bet)
        fixed += _log_unlabelled(sample, size, bet * slope, centre) if slope else 0.0
    return Problem(
        bets=np.concatenate(bets),
        points=np.concatenate(points),
        times=np.concatenate(times),
        fixed=fixed,
        least=least,
        bottom=sum(w * s.lower for s, w in zip(samples, weights, strict=True)),
        top=sum(w * s.upper for s, w in zip(samples, weights, strict=True)),
    )


def _given(values: Tensor | None) -> Tensor:
    if values is None:
        refuse("slope l", expected="0 without unlabelled inputs", got="a positive one", cure="pass g, or slope 0")
    return values


def _log_unlabelled(sample: BoundedSample, size: Size, bet: float, centre: float) -> float:
    """Sum of ln(1 - (nu l a_t n_t/N_t)(g - centre)) over the N_t unlabelled inputs."""
    g, each = _given(sample.unlabelled).numpy(), bet * size.labelled / size.unlabelled
    if each * (sample.upper - centre) >= 1.0:
        got = f"nu l alpha_t n/N_t = {each:.4g} at a centre of {centre:.4g}"
        refuse("constants", expected="no factor that can be negative", got=got, cure="lower the rate or the slope")
    return size.unlabelled * float(np.log1p(-each * (g - centre)).mean())


def upper_limit(problem: Problem, delta: float) -> float:
    """Return the least mean from which on W >= 1/delta, rounded up; at most the trivial limit."""
    from scipy.optimize import brentq  # as in bounds.pac_bayes.divergences

    target, width = math.log(1.0 / delta) + ROUNDING, problem.top - problem.bottom
    low, high = max(problem.least, problem.bottom), problem.top
    if low >= high or problem.log_evalue(high) < target:
        return high
    if problem.log_evalue(low) >= target:
        return low
    tolerance = TOLERANCE * width
    root = float(brentq(lambda mean: problem.log_evalue(mean) - target, low, high, xtol=tolerance))  # pyright: ignore
    return min(high, root + 2.0 * tolerance)
