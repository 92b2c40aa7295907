"""The direct forms: Theorem 2 with one task, and by hand."""

import math
from dataclasses import replace

import pytest

from bounds.theorems import Weights, direct_form, pooled_direct_form, theorem2
from bounds.types import InputError
from tests.experts_world import ALPHA, ANCHORS, DELTA, FREE, anchor, by_hand, experts


def test_direct_form_is_theorem2_with_one_task():
    direct = direct_form(ANCHORS[:1], (1.0,), delta=DELTA)
    two = theorem2(experts(ANCHORS[:1]), FREE, Weights((1.0,), (1.0,)), delta=DELTA)
    assert direct.value == pytest.approx(two.value, rel=1e-12)
    several = direct_form(ANCHORS, ALPHA, delta=DELTA)
    columns = [by_hand(a, math.log(3 / DELTA)) for a in ANCHORS]
    assert several.value == pytest.approx(sum(w * sum(c) for w, c in zip(ALPHA, columns, strict=True)))


def test_pooled_direct_form_by_hand():
    lambda_ = 60.0
    same = [
        replace(a, displacement_sq=ANCHORS[0].displacement_sq, sigma=ANCHORS[0].sigma)
        for a in (ANCHORS[0], anchor(0.8, 300, 0.3, 2.9), anchor(1.2, 900))
    ]
    bound = pooled_direct_form(same, ALPHA, lambda_, delta=DELTA)
    etas = [lambda_ * w / a.n for w, a in zip(ALPHA, same, strict=True)]
    total = (same[0].kl + math.log(1 / DELTA)) / lambda_
    for w, eta, a in zip(ALPHA, etas, same, strict=True):
        flat = sum(s**2 * g.value for s, g in zip(a.sigma, a.gradient, strict=True))
        trace = sum(s**2 * k.value for s, k in zip(a.sigma, a.kernel, strict=True))
        total += w * (a.own_risk.value + 0.25 * trace + eta / 2 * flat)
    largest = max(1 / (1 - eta * a.qsb.value / 2) for eta, a in zip(etas, same, strict=True))
    assert bound.value == pytest.approx(largest * total, rel=1e-12)
    one = pooled_direct_form(ANCHORS[:1], (1.0,), ANCHORS[0].eta * ANCHORS[0].n, delta=DELTA)
    assert one.value == pytest.approx(direct_form(ANCHORS[:1], (1.0,), delta=DELTA).value, rel=1e-12)
    with pytest.raises(InputError):
        pooled_direct_form(ANCHORS, ALPHA, lambda_, delta=DELTA)


def test_choices_are_paid_for_in_every_form():
    for form in (
        lambda c: direct_form(ANCHORS, ALPHA, delta=DELTA, log_choices=c),
        lambda c: pooled_direct_form(ANCHORS[:1], (1.0,), 60.0, delta=DELTA, log_choices=c),
    ):
        free, paid = form(0.0), form(math.log(8))
        assert paid.terms[2].estimate.value > free.terms[2].estimate.value
        with pytest.raises(InputError):
            form(-0.1)
