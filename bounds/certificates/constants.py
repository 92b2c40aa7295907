"""The constants of the e-value (14), (15): from sizes and ranges alone, or chosen on a pilot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from bounds.certificates.evalue import (
    SIDES,
    TINY,
    BoundedSample,
    Constants,
    Side,
    Size,
    normalised,
    problem_of,
    sizes_of,
    upper_limit,
)
from bounds.types import refuse
from bounds.validation import check_delta

STEP, STEPS = 1.15, 10
"""nu is searched on a grid of this ratio, so many steps to either side of the best for small nu."""
HEADROOM = 0.95
"""Factors of unlabelled inputs stay above 1 - HEADROOM."""


def data_free_constants(samples: Sequence[BoundedSample], alpha: Sequence[float] | Tensor, delta: float) -> Constants:
    """Return constants that look at sizes, ranges and weights only: no offsets, no g, nu for the largest variance.

    nu = sqrt(2 ln(1/delta)/V)/n with V = sum_t alpha_t^2 (upper_t - lower_t)^2/(4 n_t), the best for small nu.

    Raises:
        InputError: weights off the simplex, delta outside (0, 1).

    Source: docs/theory.md section 12.
    """
    weights = normalised(alpha, len(samples))
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
    weights, paid = normalised(alpha, len(samples)), check_delta(delta)
    if len(pilots) != len(samples):
        refuse("pilots", expected=f"{len(samples)} tasks", got=len(pilots), cure="give one per task")
    plans = [
        replace(p, unlabelled=p.predicted) for p in pilots
    ]  # their two means of g differ by chance, which is no news
    sizes, n = sizes_of(samples), sum(len(s.values) for s, w in zip(samples, weights, strict=True) if w)
    offsets = tuple(float(p.values.mean()) for p in pilots)
    centres = tuple(0.0 if p.predicted is None else float(p.predicted.mean()) for p in pilots)
    candidates = []
    for slope in {0.0, _slope(pilots, sizes, weights)}:
        best = math.sqrt(2.0 * math.log(1.0 / paid) / _variance(pilots, sizes, weights, slope)) / n
        start = min(best, _useful_rate(samples, weights, Constants(best, offsets, slope, centres), n))
        most = HEADROOM / max(_reach(samples, weights, centres, n, slope), TINY)
        rates = {min(most, start * STEP**k) for k in range(-STEPS, STEPS + 1)}
        candidates += [Constants(rate, offsets, slope, centres) for rate in sorted(rates)]
    return min(candidates, key=lambda c: (upper_limit(problem_of(plans, weights, c, sizes), paid), c.rate))


def _slope(pilots: Sequence[BoundedSample], sizes: Sequence[Size], weights: Sequence[float]) -> float:
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


def _variance(pilots: Sequence[BoundedSample], sizes: Sequence[Size], weights: Sequence[float], slope: float) -> float:
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
