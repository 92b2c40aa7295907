"""Theorem 2: sums of the right terms, vertices, forms, readings and refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bounds.heterogeneity import heterogeneity
from bounds.theorems import Corrected, MergeAnchor, MergedModel, PerExpert, Weights, theorem2, vertices
from bounds.types import Estimate, InputError
from tests.experts_world import ALPHA, ANCHORS, BETA, DELTA, FREE, WEIGHTS, by_hand, estimate, experts, losses


def test_theorem2_terms_by_hand_and_in_order():
    sizes = (4, 8, 16)
    bound = theorem2(
        experts(log_choices=[math.log(g) for g in sizes]),
        MergedModel(estimate(0.07), estimate(0.02)),
        WEIGHTS,
        delta=DELTA,
        gamma=0.7,
        reading=Corrected(estimate(0.11)),
        trivial_risk=1.0,
    )
    names = ["own risk", "noise", "complexity", "flatness", "heterogeneity", "gap", "gain", "transfer error"]
    assert all(n in t.name for n, t in zip(names, bound.terms, strict=True))
    columns = [by_hand(a, math.log(3 * g / DELTA), 0.7) for a, g in zip(ANCHORS, sizes, strict=True)]
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


def measured(seed=5):
    """Gap per expert on the examples of each task, and the gain, which is positive."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(m, 3, generator=generator, dtype=torch.float64) for m in (40, 50, 60)]
    return PerExpert(tuple(tables)), PerExpert(tuple(t.abs() for t in tables))


GAPS, GAINS = [estimate(v) for v in (0.1, -0.2, 0.05)], [estimate(v) for v in (0.03, 0.01, 0.02)]


@pytest.mark.parametrize("merge", [MergedModel(GAPS, GAINS), MergedModel(*measured())], ids=["estimates", "examples"])
def test_vertices_are_the_bounds_at_the_corners(merge):
    def make(weights):
        return theorem2(experts(), merge, Weights(ALPHA, weights), delta=DELTA, reading=Corrected(estimate(0.2)))

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


def test_no_vertices_without_values_per_expert():
    with pytest.raises(InputError, match="consensus gap"):
        vertices(theorem2(experts(), MergedModel(estimate(0.1)), WEIGHTS, delta=DELTA))


def test_readings_and_statuses():
    def make(reading: Any, gap=0.1):
        return theorem2(experts(), MergedModel(estimate(gap), estimate(0.01)), WEIGHTS, delta=DELTA, reading=reading)

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
    gap = Estimate(0.1, 0, 1, "certified")
    bound = theorem2(experts(certified), MergedModel(gap, [gap] * 3), WEIGHTS, delta=DELTA, reading=Corrected(gap))
    assert all(t.estimate.status != "certified" for t in bound.terms)
    assert all(e.status != "certified" for t in bound.terms for e in t.per_task)
    for unfit in ("corrected", "linear", None):  # "corrected" needs its transfer error
        with pytest.raises(InputError, match="reading"):
            make(unfit)
    with pytest.raises(InputError, match="transfer error"):
        Corrected(estimate(-0.1))


def test_free_anchors_have_a_gap_of_exactly_zero():
    bound = theorem2(experts(), FREE, WEIGHTS, delta=DELTA)
    assert bound.name == "Theorem 2, free anchors"
    assert next(t for t in bound.terms if t.name == "consensus gap").estimate == Estimate(0.0)


def test_merge_anchored_terms_by_hand():
    fixed = MergeAnchor(
        risk=estimate(0.4),
        gradient_norm_sq=estimate(9.0),
        distance_sq=4.0,
        kernel_dispersion=estimate(1.3),
        mu=2.0,
    )
    one = Weights((1.0,), (1.0,))
    bound = theorem2(experts(ANCHORS[:1]), MergedModel(estimate(0.1), anchors=[fixed]), one, delta=DELTA)
    assert bound.name == "Theorem 2, merge-anchored"
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
    with pytest.raises(InputError, match="merge anchors"):
        theorem2(experts(), MergedModel(estimate(0.1), anchors=[fixed]), WEIGHTS, delta=DELTA)


@pytest.mark.parametrize(
    ("merge", "weights", "delta"),
    [
        (FREE, Weights((0.5, 0.5), (0.5, 0.5)), DELTA),
        (MergedModel(GAPS[:2]), WEIGHTS, DELTA),
        (MergedModel(PerExpert(measured()[0].values[:2])), WEIGHTS, DELTA),
        (MergedModel(estimate(math.nan)), WEIGHTS, DELTA),
        (MergedModel(None, estimate(-0.1)), WEIGHTS, DELTA),
        (FREE, WEIGHTS, 0.0),
        (FREE, WEIGHTS, 1.0),
        (FREE, WEIGHTS, math.nan),
    ],
    ids=["weights", "gaps", "examples", "nan", "negative gain", "delta 0", "delta 1", "delta nan"],
)
def test_what_does_not_fit_is_refused(merge, weights, delta):
    with pytest.raises(InputError):
        theorem2(experts(), merge, weights, delta=delta)
