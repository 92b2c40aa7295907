"""Standard errors of accuracies that the same test examples scored: of means, of differences, of normalised gains.

Whatever is compared here is a mean over T tasks of values per seed and example, ``values[t]`` [S, N_t]: the correctness
of a row, the difference of two rows' correctness, or the linear part of a ratio of them. Test examples and seeds are
drawn independently, and each example meets each seed: value(s, i) = mean + seed(s) + example(i) + rest(s, i). The
variance of the mean is estimated from

- ``examples``: Σ_t s²_t / N_t / T², s²_t the sample variance over examples of the values averaged over seeds;
- ``seeds``: the sample variance over seeds of the mean over examples and tasks, / S (0 where there is one seed);
- ``both``: Σ_t r²_t / (N_t S) / T², r²_t the variance of the rest, which is in each of these two.

examples + seeds − both is the unbiased estimate of crossed random effects (Searle, Casella and McCulloch, Variance
Components, 1992); no less than the larger of the first two is taken, as the true variance is no less than either. With
one seed the error is that of the test sample alone, for the merge that this seed gave. The sum of binary differences is
taken as normal: where few examples differ, McNemar's exact test is stricter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from scipy.optimize import brentq
from scipy.special import stdtrit
from torch import Tensor

from bounds.types import Estimate, refuse

Values: TypeAlias = Sequence[Tensor]
"""Per task [S, N_t] in float64: S seeds (1 where nothing is drawn), N_t test examples."""


@dataclass(frozen=True)
class Parts:
    """What the variance of a mean is made of: of each task's ``examples``, of ``seeds``, and what is in ``both``."""

    examples: Sequence[float]
    seeds: float
    both: float

    @property
    def variance(self) -> float:
        """The variance of the mean: examples + seeds − both (see the head of this file)."""
        examples = sum(self.examples)
        return max(examples, self.seeds, examples + self.seeds - self.both)


def estimate(values: Values) -> Estimate:
    """Return the mean over tasks of the means over seeds and examples, with its standard error.

    The error is inf where a task has a single example.

    Raises:
        InputError: tasks of another number of seeds.
    """
    _check(values)
    alone = any(v.shape[1] == 1 for v in values)
    error = math.inf if alone else math.sqrt(_parts(values).variance)
    return Estimate(_mean(values), error, sum(v.shape[1] for v in values), "estimated")


def _mean(values: Values) -> float:
    return sum(float(v.mean()) for v in values) / len(values)


def _parts(values: Values) -> Parts:
    tasks, seeds = len(values), len(values[0])
    examples = [float(v.mean(dim=0).var()) / v.shape[1] / tasks**2 for v in values]
    if seeds == 1:
        return Parts(examples, 0.0, sum(examples))
    means = torch.stack([v.mean(dim=1) for v in values]).mean(dim=0)
    both = sum(_rest(v) / v.numel() for v in values) / tasks**2
    return Parts(examples, float(means.var()) / seeds, both)


def _rest(values: Tensor) -> float:
    """Return the variance of what neither its seed nor its example explains of a value [S, N]."""
    seeds, examples = values.shape
    rest = values - values.mean(dim=0) - values.mean(dim=1, keepdim=True) + values.mean()
    return float(rest.square().sum()) / ((seeds - 1) * (examples - 1))


def difference(first: Values, second: Values) -> Estimate:
    """Return the difference first − second of two rows' mean accuracies (in 0..1) with its paired standard error.

    Examples are paired, and seeds where both rows have them: with the same seed, rows draw the same calibration
    examples. A row without seeds meets every seed of the other.

    Raises:
        InputError: rows of other examples, or of other numbers of seeds where both have several.
    """
    return estimate([a - b for a, b in _matched(first, second)])


def gain(row: Values, pretrained: Values, experts: Values) -> Estimate | None:
    """Return (row − pretrained) / (experts − pretrained) of mean accuracies; its standard error by the delta method.

    Example by example, its linear part is (row − pretrained − gain · (experts − pretrained)) / (experts − pretrained)
    with the sample's gain and the sample's mean below the line: numerator and denominator are paired. None where the
    experts are no better than the pretrained model.

    Raises:
        InputError: as :func:`difference`.
    """
    room = difference(experts, pretrained).value
    if room <= 0:
        return None
    value = difference(row, pretrained).value / room
    whole = zip(_matched(row, pretrained), experts, strict=True)
    linear = estimate([(m - p - value * (e - p)) / room for (m, p), e in whole])
    return Estimate(value, linear.stderr, linear.n, "estimated")


def told_apart(found: Estimate) -> bool:
    """Whether a difference is at least two of its standard errors from 0: about one in twenty equal pairs is, too."""
    return found.value != 0 and abs(found.value) >= 2 * found.stderr


def p_value(first: Values, second: Values) -> float:
    """Return a two-sided p-value of equal mean accuracies of two rows, from Student's t of their paired difference.

    The p at which difference² = t²_f(p) · examples + t²_(S−1)(p) · seeds, t the quantile that p/2 lies above (Banerjee
    1960, Sankhyā 22): the level holds whichever part is the larger, where one t with Satterthwaite's degrees of freedom
    errs many times too often at small p and few seeds. f is Satterthwaite's number for the tasks' examples alone. No
    less than 2^(1 − n), n the examples on which the rows differ at all: the least that any test by signs can say of n.
    1 where the means are equal, or a task has a single example. Estimated.

    Raises:
        InputError: as :func:`difference`.
    """
    values = [a - b for a, b in _matched(first, second)]
    mean, differing = _mean(values), sum(int((v.mean(dim=0) != 0).sum()) for v in values)
    if mean == 0 or any(v.shape[1] == 1 for v in values):
        return 1.0
    parts, least = _parts(values), 2.0 ** (1 - differing)
    examples = sum(parts.examples)
    if examples == 0:
        return max(least, _tail(mean**2, ((parts.seeds, len(values[0]) - 1),)))
    spread = sum(part**2 / (v.shape[1] - 1) for part, v in zip(parts.examples, values, strict=True))
    return max(least, _tail(mean**2, ((examples, examples**2 / spread), (parts.seeds, len(values[0]) - 1))))


def _tail(square: float, parts: Sequence[tuple[float, float]]) -> float:
    """Return p with Σ t²_f(p) · variance = ``square`` over parts (variance, degrees of freedom f); 0 below 10^-15."""
    parts = [(variance, freedom) for variance, freedom in parts if variance > 0]

    def excess(exponent: float) -> float:
        return sum(v * float(stdtrit(f, 10**exponent / 2)) ** 2 for v, f in parts) - square

    if excess(-15) < 0:
        return 0.0
    root: Any = brentq(excess, -15, 0, xtol=1e-12)
    return 10 ** float(root)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: rejecting those at or below a level errs at all with at most its probability.

    The i-th smallest of T, i = 0.., is multiplied by T - i and is no less than the smaller ones' (Holm 1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = adjusted[index] = max(least, min(1.0, (len(order) - rank) * p_values[index]))
    return adjusted


def _matched(first: Values, second: Values) -> list[tuple[Tensor, Tensor]]:
    _check(first)
    _check(second)
    sizes = [[v.shape[1] for v in row] for row in (first, second)]
    if sizes[0] != sizes[1]:
        refuse("rows", expected=f"the same test examples, {sizes[0]}", got=sizes[1], cure="measure both on one suite")
    seeds = len(first[0]), len(second[0])
    if seeds[0] != seeds[1] and 1 not in seeds:
        refuse("rows", expected="the same seeds", got=f"{seeds[0]} and {seeds[1]}", cure="give both the same, or one")
    return list(zip(first, second, strict=True))


def _check(values: Values) -> None:
    if not values or any(v.dim() != 2 or len(v) != len(values[0]) or not v.numel() for v in values):
        got = [tuple(v.shape) for v in values]
        refuse("values", expected="tasks of [seeds, examples], of one number of seeds", got=got, cure="pass these")
