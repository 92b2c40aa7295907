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

from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_delta, check_finite, check_nonnegative, check_positive, check_weights

Side = Literal["upper", "lower"]
SIDES: tuple[Side, ...] = ("upper", "lower")
TOLERANCE = 1e-9
"""Of a limit, in units of the weighted range of X. Limits are rounded outward by twice as much."""
ROUNDING = 1e-9
"""Added to ln(1/delta): more than what rounding can do to a sum of logarithms in float64."""
TINY = 1e-300
"""A factor is not taken below this: its logarithm stays finite."""
STEP, STEPS = 1.15, 10
"""nu is searched on a grid of this ratio, so many steps to either side of the best for small nu."""
HEADROOM = 0.95
"""Factors of unlabelled inputs stay above 1 - HEADROOM."""

EXAMPLES = "examples are independent, and unused in training, in choosing the model and in choosing the constants"
INPUTS = "the unlabelled inputs are distributed like the labelled ones, independent of them, and unused for the model"


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


def weighted_mean(
    samples: Sequence[BoundedSample],
    alpha: Sequence[float] | Tensor,
    delta: float,
    constants: Constants | None = None,
    *,
    side: Side = "upper",
    models_looked_at: int = 1,
) -> Bound:
    """Certify sum_t alpha_t E X_t, from above or from below: (14), and (15) where there are unlabelled inputs.

    Args:
        samples: per task; the sizes are fixed in advance. The tasks' examples are independent of each other.
        alpha: weights [T] on the simplex.
        delta: failure probability of this one limit. Several limits that shall hold together share it.
        constants: chosen without these samples (:func:`choose_constants`); None: those that need no data.
        side: "upper" or "lower".
        models_looked_at: K, a list of models fixed in advance of which this is one: each pays delta/K.

    Returns:
        Bound whose value is the limit, sign kept: observed mean + rectifier (where g is used) + margin, certified. With
        side "lower" the margin is negative and the value a lower limit. The limit is solved for to 1e-9 of the range,
        and rounded outward.

    Raises:
        InputError: weights off the simplex, delta outside (0, 1), K < 1, unknown side, constants that do not fit the
            samples (other number of tasks, a slope without unlabelled inputs, a negative factor).

    Source: docs/theory.md (14), (15).
    """
    if side not in SIDES:
        refuse("side", expected=SIDES, got=side, cure="choose one of these")
    weights = _normalised(alpha, len(samples))
    paid = check_delta(delta) / check_count(models_looked_at, "models looked at")
    chosen = constants or data_free_constants(samples, weights, paid)
    sign = 1.0 if side == "upper" else -1.0
    turned, bet = (samples, chosen) if side == "upper" else ([s.negated for s in samples], chosen.negated)
    limit = sign * _upper_limit(_problem(turned, weights, bet, _sizes(turned)), paid)
    observed = sum(w * float(s.values.mean()) for s, w in zip(samples, weights, strict=True))
    rectifier = -chosen.slope * sum(w * _surplus(s) for s, w in zip(samples, weights, strict=True))
    n = sum(len(s.values) for s, w in zip(samples, weights, strict=True) if w)
    note = f"nu = {chosen.rate:.4g}, l = {chosen.slope:.4g}, {models_looked_at} model(s) looked at, each at {paid:.3g}"
    return Bound(
        name=f"weighted mean, {'at most' if side == 'upper' else 'at least'}",
        reading="certificate",
        terms=_terms(observed, rectifier, limit, n, note, with_inputs=chosen.slope > 0.0),
        delta=delta,
        assumptions=(EXAMPLES, *((INPUTS,) if chosen.slope else ())),
        trivial_risk=sum(w * s.upper for s, w in zip(samples, weights, strict=True)),
    )


def _normalised(alpha: Sequence[float] | Tensor, count: int) -> tuple[float, ...]:
    """Return weights whose sum is 1 to rounding, so that limit and range are those of one mean."""
    weights = check_weights(alpha, count, "alpha")
    return tuple(w / sum(weights) for w in weights)


def _terms(
    observed: float, rectifier: float, limit: float, n: int, note: str, *, with_inputs: bool
) -> tuple[Term, ...]:
    equation = "(15)" if with_inputs else "(14)"
    seen = Term(symbol="Σα_t X̄_t", name="observed mean", equation=equation, estimate=Estimate(observed, 0.0, n))
    margin = Term(
        symbol="margin",
        name="what certainty costs",
        equation=equation,
        estimate=Estimate(limit - observed - rectifier, 0.0, n, "certified"),
        note=note,
    )
    if not with_inputs:
        return seen, margin
    name = "rectifier from unlabelled inputs"
    return (
        seen,
        Term(symbol="l Σα_t(g′_t − g_t)", name=name, equation=equation, estimate=Estimate(rectifier, 0.0, n)),
        margin,
    )


def _surplus(sample: BoundedSample) -> float:
    """Mean of g on the labelled inputs minus that on the others."""
    if sample.predicted is None or sample.unlabelled is None:
        return 0.0
    return float(sample.predicted.mean() - sample.unlabelled.mean())


@dataclass(frozen=True, kw_only=True)
class _Problem:
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
class _Size:
    """Labelled and unlabelled examples of a task."""

    labelled: int
    unlabelled: int


def _sizes(samples: Sequence[BoundedSample]) -> list[_Size]:
    return [_Size(len(s.values), 0 if s.unlabelled is None else len(s.unlabelled)) for s in samples]


def _problem(
    samples: Sequence[BoundedSample], weights: Sequence[float], constants: Constants, sizes: Sequence[_Size]
) -> _Problem:
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
    return _Problem(
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


def _log_unlabelled(sample: BoundedSample, size: _Size, bet: float, centre: float) -> float:
    """Sum of ln(1 - (nu l a_t n_t/N_t)(g - centre)) over the N_t unlabelled inputs."""
    g, each = _given(sample.unlabelled).numpy(), bet * size.labelled / size.unlabelled
    if each * (sample.upper - centre) >= 1.0:
        got = f"nu l alpha_t n/N_t = {each:.4g} at a centre of {centre:.4g}"
        refuse("constants", expected="no factor that can be negative", got=got, cure="lower the rate or the slope")
    return size.unlabelled * float(np.log1p(-each * (g - centre)).mean())


def _upper_limit(problem: _Problem, delta: float) -> float:
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


def data_free_constants(samples: Sequence[BoundedSample], alpha: Sequence[float] | Tensor, delta: float) -> Constants:
    """Return constants that look at sizes, ranges and weights only: no offsets, no g, nu for the largest variance.

    nu = sqrt(2 ln(1/delta)/V)/n with V = sum_t alpha_t^2 (upper_t - lower_t)^2/(4 n_t), the best for small nu.

    Raises:
        InputError: weights off the simplex, delta outside (0, 1).

    Source: docs/theory.md section 12.
    """
    weights = _normalised(alpha, len(samples))
    used = [(s, w) for s, w in zip(samples, weights, strict=True) if w]
    variance = sum(w**2 / len(s.values) * (s.upper - s.lower) ** 2 / 4.0 for s, w in used)
    n = sum(len(s.values) for s, _ in used)
    return Constants(math.sqrt(2.0 * math.log(1.0 / check_delta(delta)) / variance) / n, (0.0,) * len(samples))


def choose_constants(
    pilots: Sequence[BoundedSample],
    samples: Sequence[BoundedSample],
    alpha: Sequence[float] | Tensor,
    delta: float,
    *,
    side: Side = "upper",
) -> Constants:
    """Choose the constants of (15) on other data, so that the limit would be tight if these were the sample.

    Args:
        pilots: per task, guesses of X, and of g where it shall be used, on data that are in none of ``samples``: e.g.
            inputs that the merge was learned on, with labels drawn from the experts. Their number does not matter.
        samples: what the constants are for: only sizes and ranges are looked at.
        alpha: weights [T] on the simplex.
        delta: failure probability of the limit, after division by whatever shares it.
        side: of the limit.

    Returns:
        Constants: offsets and centres are the pilots' means; the slope is 0 or the one of least variance, and nu from a
        grid, whichever pair gives the better limit.

    Raises:
        InputError: another number of pilots, weights off the simplex, delta outside (0, 1), unknown side.

    Source: docs/theory.md section 12.
    """
    if side not in SIDES:
        refuse("side", expected=SIDES, got=side, cure="choose one of these")
    if side == "lower":
        turned = [[s.negated for s in group] for group in (pilots, samples)]
        return choose_constants(turned[0], turned[1], alpha, delta).negated
    weights, paid = _normalised(alpha, len(samples)), check_delta(delta)
    if len(pilots) != len(samples):
        refuse("pilots", expected=f"{len(samples)} tasks", got=len(pilots), cure="give one per task")
    plans = [
        replace(p, unlabelled=p.predicted) for p in pilots
    ]  # their two means of g differ by chance, which is no news
    sizes, n = _sizes(samples), sum(len(s.values) for s, w in zip(samples, weights, strict=True) if w)
    offsets = tuple(float(p.values.mean()) for p in pilots)
    centres = tuple(0.0 if p.predicted is None else float(p.predicted.mean()) for p in pilots)
    candidates = []
    for slope in {0.0, _slope(pilots, sizes, weights)}:
        best = math.sqrt(2.0 * math.log(1.0 / paid) / _variance(pilots, sizes, weights, slope)) / n
        start = min(best, _useful_rate(samples, weights, Constants(best, offsets, slope, centres), n))
        most = HEADROOM / max(_reach(samples, weights, centres, n, slope), TINY)
        rates = {min(most, start * STEP**k) for k in range(-STEPS, STEPS + 1)}
        candidates += [Constants(rate, offsets, slope, centres) for rate in sorted(rates)]
    return min(candidates, key=lambda c: (_upper_limit(_problem(plans, weights, c, sizes), paid), c.rate))


def _slope(pilots: Sequence[BoundedSample], sizes: Sequence[_Size], weights: Sequence[float]) -> float:
    """Return the l >= 0 of least variance, sum a Cov(X, g) / sum a (1 + n_t/N_t) Var g with a = alpha_t^2/n_t."""
    both, own = 0.0, 0.0
    for pilot, size, weight in zip(pilots, sizes, weights, strict=True):
        if weight and (pilot.predicted is None or not size.unlabelled):
            return 0.0
        if weight and pilot.predicted is not None:
            x, g, scale = pilot.values, pilot.predicted, weight**2 / size.labelled
            both += scale * float(((x - x.mean()) * (g - g.mean())).mean())
            own += scale * (1.0 + size.labelled / size.unlabelled) * float(g.var(correction=0))
    return max(0.0, both / own) if own > 0.0 else 0.0


def _variance(pilots: Sequence[BoundedSample], sizes: Sequence[_Size], weights: Sequence[float], slope: float) -> float:
    """Variance of the weighted mean; of a pilot without spread, as if one example in 4n had been at the other end."""
    total = 0.0
    for pilot, size, weight in zip(pilots, sizes, weights, strict=True):
        scale, x = weight**2 / size.labelled if weight else 0.0, pilot.values
        if slope and scale and pilot.predicted is not None:
            x = x - slope * pilot.predicted
            total += scale * slope**2 * size.labelled / size.unlabelled * float(pilot.predicted.var(correction=0))
        total += scale * (float(x.var(correction=0)) + (pilot.upper - pilot.lower) ** 2 / (4.0 * size.labelled))
    return total


def _useful_rate(samples: Sequence[BoundedSample], weights: Sequence[float], guess: Constants, n: int) -> float:
    """Return the nu up to which no factor can be negative from the guessed mean on: the limit lies above it anyway."""
    mean = sum(w * o for w, o in zip(weights, guess.offsets, strict=True))
    reaches = [
        w * n / len(s.values) * (s.upper - guess.slope * (s.lower - c) - (o - mean) - mean)
        for s, w, o, c in zip(samples, weights, guess.offsets, guess.centres, strict=True)
        if w
    ]
    return 1.0 / max(max(reaches), TINY)


def _reach(
    samples: Sequence[BoundedSample], weights: Sequence[float], centres: Sequence[float], n: int, slope: float
) -> float:
    """Largest l alpha_t (n/N_t)(upper - c_t): nu times it must stay below 1."""
    parts = zip(samples, weights, centres, strict=True)
    return max(
        (slope * w * n / len(s.unlabelled) * (s.upper - c) for s, w, c in parts if s.unlabelled is not None),
        default=0.0,
    )
