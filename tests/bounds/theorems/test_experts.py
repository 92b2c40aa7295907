"""What the experts' side refuses, and what its choices cost."""

import math
from dataclasses import replace

import pytest

from bounds.theorems import Experts, MergeAnchor
from bounds.types import Estimate, InputError
from tests.experts_world import ANCHORS, DELTA, estimate, experts


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"eta": 2.0},
        {"eta": -0.1},
        {"sigma": (0.2, 0.0, 0.0)},
        {"sigma": (0.2, 0.1)},
        {"displacement_sq": (2.0, -1.0, 0.5)},
        {"own_risk": Estimate(math.nan)},
        {"kernel": (Estimate(-1.0), Estimate(1.0), Estimate(1.0))},
        {"qsb": Estimate(math.inf)},
    ],
)
def test_anchor_statistics_refuse(change):
    with pytest.raises(InputError):
        replace(ANCHORS[0], **change)


def test_prices_are_the_union_over_tasks_and_choices():
    assert experts().prices(DELTA) == pytest.approx([math.log(3 / DELTA)] * 3)
    assert experts(log_choices=math.log(7)).prices(DELTA) == pytest.approx([math.log(3 * 7 / DELTA)] * 3)
    each = experts(log_choices=[math.log(g) for g in (1, 4, 8)]).prices(DELTA)
    assert each == pytest.approx([math.log(3 * g / DELTA) for g in (1, 4, 8)])
    assert sum(math.exp(-p) for p in each) <= DELTA


@pytest.mark.parametrize("choices", [[0.0, 0.0], math.nan, math.inf])
def test_choices_that_do_not_fit_are_refused(choices):
    with pytest.raises(InputError):
        experts(log_choices=choices).prices(DELTA)


def test_experts_and_cross_risk_are_of_the_same_tasks():
    with pytest.raises(InputError, match="cross-risk"):
        Experts(ANCHORS[:2], experts().cross)
    with pytest.raises(InputError, match="at least one"):
        Experts([], experts().cross)


def test_merge_anchor_by_hand_and_best_mu():
    fixed = MergeAnchor(
        risk=estimate(0.4), gradient_norm_sq=estimate(9.0), distance_sq=4.0, kernel_dispersion=estimate(1.3), mu=2.0
    )
    assert fixed.gradient_flatness.value == pytest.approx(9.0 / 4.0)
    assert fixed.dispersion.value == pytest.approx(4.0)
    best = replace(fixed, mu=None)
    assert best.gradient_flatness.value + best.dispersion.value == pytest.approx(3.0 * 2.0)
    for mu in (1.4, 1.6):
        other = replace(fixed, mu=mu)
        assert other.gradient_flatness.value + other.dispersion.value > 6.0
    slope = (math.sqrt(9.0 + 1e-6) - 3.0) * 2.0 / 1e-6
    assert best.gradient_flatness.stderr + best.dispersion.stderr == pytest.approx(0.01 * slope, rel=1e-4)
