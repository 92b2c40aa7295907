"""Theorems 1-3: sums of the right terms, vertices, forms, readings and refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bounds.heterogeneity import cross_risk, heterogeneity
from bounds.theorems import (
    AnchorStatistics,
    MergeAnchor,
    direct_form,
    pooled_direct_form,
    theorem1,
    theorem2,
    vertices,
)
from bounds.types import Estimate, InputError

ALPHA, BETA, DELTA = (0.5, 0.2, 0.3), (0.1, 0.6, 0.3), 0.05


def estimate(value, stderr=0.01, n=50):
    return Estimate(value, stderr, n, "estimated")


def anchor(scale=1.0, n=400, eta=0.2, constant=1.5):
    return AnchorStatistics(
        own_risk=estimate(0.3 * scale),
        n=n,
        displacement_sq=(2.0 * scale, 0.0, 0.5),
        kernel=(estimate(9.0 * scale), estimate(4.0), estimate(1.0)),
        gradient=(estimate(0.7), estimate(5.0), estimate(0.2 * scale)),
        sigma=(0.2, 0.0, 0.4 * scale),
        eta=eta,
        qsb=estimate(constant),
    )


ANCHORS = (anchor(), anchor(0.8, 300, 0.3, 0.9), anchor(1.2, 900))


def losses(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(m, 3, generator=generator, dtype=torch.float64) for m in (40, 50, 60)]


def by_hand(a, price, gamma=0.5):
    """The four terms of one expert in (5), written out."""
    big_a = 1 / (1 - a.eta * a.qsb.value / 2)
    big_b = a.eta / (2 - a.eta * a.qsb.value)
    kl = sum(d / (2 * s**2) for d, s in zip(a.displacement_sq, a.sigma, strict=True) if d > 0)
    trace = sum(s**2 * k.value for s, k in zip(a.sigma, a.kernel, strict=True))
    flat = sum(s**2 * g.value for s, g in zip(a.sigma, a.gradient, strict=True))
    return (
        big_a * a.own_risk.value,
        big_a * gamma / 2 * trace,
        big_a * (kl + price) / (a.eta * a.n),
        big_b * flat,
    )


def test_theorem2_terms_by_hand_and_in_order():
    price = [math.log(3 * g / DELTA) for g in (4, 8, 16)]
    bound = theorem2(
        ANCHORS,
        losses(),
        ALPHA,
        BETA,
        estimate(0.07),
        estimate(0.02),
        delta=DELTA,
        log_price=price,
        gamma=0.7,
        reading="corrected",
        transfer_error=estimate(0.11),
        trivial_risk=1.0,
    )
    names = ["own risk", "noise", "complexity", "flatness", "heterogeneity", "gap", "gain", "transfer error"]
    assert all(n in t.name for n, t in zip(names, bound.terms, strict=True))
    columns = [by_hand(a, p, 0.7) for a, p in zip(ANCHORS, price, strict=True)]
    expected = [sum(b * c[k] for b, c in zip(BETA, columns, strict=True)) for k in range(4)]
    expected += [heterogeneity(losses(), ALPHA, BETA).value, 0.07, -0.02, 0.11]
    assert [t.estimate.value for t in bound.terms] == pytest.approx(expected, rel=1e-12)
    assert bound.value == pytest.approx(sum(expected), rel=1e-12)
    for k in range(4):
        assert [e.value for e in bound.terms[k].per_task] == pytest.approx([c[k] for c in columns])
    assert bound.delta == DELTA
    assert bound.reading == "corrected"
    assert bound.vacuous == (bound.value >= 1.0)
    assert len({t.symbol for t in bound.terms}) == len(bound.terms)


def test_default_price_is_the_union_over_tasks():
    free = theorem2(ANCHORS, estimate(0.1), ALPHA, BETA, Estimate(0.0), delta=DELTA)
    paid = theorem2(ANCHORS, estimate(0.1), ALPHA, BETA, Estimate(0.0), delta=DELTA, log_price=math.log(3 / DELTA))
    assert free == paid
    for price in (math.log(1 / DELTA), [math.log(3 / DELTA)] * 2, math.nan):
        with pytest.raises(InputError):
            theorem2(ANCHORS, estimate(0.1), ALPHA, BETA, Estimate(0.0), delta=DELTA, log_price=price)


def test_vertices_are_the_bounds_at_the_corners():
    gaps, gains = [estimate(v) for v in (0.1, -0.2, 0.05)], [estimate(v) for v in (0.03, 0.01, 0.02)]

    def total(parts, weights):
        return estimate(sum(w * e.value for w, e in zip(weights, parts, strict=True)))

    def make(weights):
        return theorem2(
            ANCHORS,
            cross_risk(losses()),
            ALPHA,
            weights,
            total(gaps, weights),
            total(gains, weights),
            delta=DELTA,
            gap_per_expert=gaps,
            gain_per_expert=gains,
            reading="corrected",
            transfer_error=estimate(0.2),
        )

    bound = make(BETA)
    for gain in (True, False):
        corners = vertices(bound, gain=gain)
        for j in range(3):
            corner = make([float(i == j) for i in range(3)])
            without = 0.0 if gain else corner.terms[6].estimate.value
            assert corners[j].value == pytest.approx(corner.value - without, rel=1e-10)
        assert sum(b * c.value for b, c in zip(BETA, corners, strict=True)) == pytest.approx(
            bound.value - (0.0 if gain else bound.terms[6].estimate.value), rel=1e-10
        )
    with pytest.raises(InputError):
        vertices(theorem2(ANCHORS, estimate(0.1), ALPHA, BETA, Estimate(0.0), delta=DELTA))
    with pytest.raises(InputError):  # per-expert gaps that are not those of the total
        theorem2(ANCHORS, losses(), ALPHA, BETA, estimate(0.5), delta=DELTA, gap_per_expert=gaps)


def test_readings_and_statuses():
    def make(reading: Any, **more: Any):
        return theorem2(
            ANCHORS,
            losses(),
            ALPHA,
            BETA,
            estimate(0.1),
            estimate(0.01),
            delta=DELTA,
            reading=reading,
            **more,
        )

    assert make("linearised").status == "estimated"
    assumed = make("assumed-linear")
    assert {t.name for t in assumed.terms if t.estimate.status == "assumed"} == {
        "kernel-weighted noise",
        "consensus gap",
        "Bregman gain",
    }
    assert assumed.value == make("linearised").value
    certified = [replace(a, own_risk=replace(a.own_risk, status="certified")) for a in ANCHORS]
    certified = [replace(a, qsb=replace(a.qsb, status="certified")) for a in certified]
    bound = theorem2(certified, Estimate(0.1, 0, 1, "certified"), ALPHA, BETA, Estimate(0.0), delta=DELTA)
    assert all(t.estimate.status != "certified" for t in bound.terms)
    unfit: tuple[dict[str, Any], ...] = (
        {"reading": "corrected"},
        {"reading": "linear"},
        {"reading": "linearised", "transfer_error": estimate(0.1)},
    )
    for bad in unfit:
        with pytest.raises(InputError):
            theorem2(ANCHORS, losses(), ALPHA, BETA, estimate(0.1), delta=DELTA, **bad)


def test_free_anchors_need_a_zero_gap():
    theorem2(ANCHORS, losses(), ALPHA, BETA, Estimate(0.0), delta=DELTA, form="free anchors")
    with pytest.raises(InputError):
        theorem2(ANCHORS, losses(), ALPHA, BETA, estimate(0.1), delta=DELTA, form="free anchors")


def test_merge_anchor_by_hand_and_best_mu():
    fixed = MergeAnchor(estimate(0.4), estimate(9.0), 4.0, estimate(1.3), mu=2.0)
    assert fixed.gradient_flatness.value == pytest.approx(9.0 / 4.0)
    assert fixed.dispersion.value == pytest.approx(4.0)
    best = replace(fixed, mu=None)
    assert best.gradient_flatness.value + best.dispersion.value == pytest.approx(3.0 * 2.0)
    for mu in (1.4, 1.6):
        other = replace(fixed, mu=mu)
        assert other.gradient_flatness.value + other.dispersion.value > 6.0
    slope = (math.sqrt(9.0 + 1e-6) - 3.0) * 2.0 / 1e-6
    assert best.gradient_flatness.stderr + best.dispersion.stderr == pytest.approx(0.01 * slope, rel=1e-4)
    bound = theorem2(
        ANCHORS[:1],
        estimate(0.0),
        (1.0,),
        (1.0,),
        estimate(0.1),
        delta=DELTA,
        form="merge-anchored",
        merge_anchors=[fixed],
    )
    names = [t.name for t in bound.terms]
    assert names[:4] == [
        "risk of the merge",
        "gradient-norm flatness",
        "dispersion",
        "kernel-weighted dispersion",
    ]
    a = 1 / (1 - 0.2 * 1.5 / 2)
    expected = [
        a * 0.4,
        a * 9 / 4,
        a * 4.0,
        a * 0.25 * 1.3,
        *by_hand(ANCHORS[0], math.log(1 / DELTA))[1:],
        0,
        0.1,
    ]
    assert [t.estimate.value for t in bound.terms] == pytest.approx(expected)
    with pytest.raises(InputError):
        theorem2(ANCHORS, losses(), ALPHA, BETA, estimate(0.1), delta=DELTA, form="merge-anchored")


def test_direct_form_is_theorem2_with_one_task():
    direct = direct_form(ANCHORS[:1], (1.0,), delta=DELTA)
    two = theorem2(ANCHORS[:1], Estimate(0.0), (1.0,), (1.0,), Estimate(0.0), delta=DELTA)
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


def test_theorems_refuse_bad_weights_and_delta():
    for alpha, beta in (((0.5, 0.5), BETA), (ALPHA, (0.5, 0.6, 0.2)), ((1.2, -0.2, 0.0), BETA)):
        with pytest.raises(InputError):
            theorem2(ANCHORS, losses(), alpha, beta, Estimate(0.0), delta=DELTA)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(InputError):
            theorem2(ANCHORS, losses(), ALPHA, BETA, Estimate(0.0), delta=delta)
    with pytest.raises(InputError):
        theorem1([], estimate(0.1), (), (), delta=DELTA)
    with pytest.raises(InputError):
        theorem2(ANCHORS, losses(), ALPHA, BETA, Estimate(0.0), estimate(-0.1), delta=DELTA)
