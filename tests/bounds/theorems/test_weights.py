"""Weights on the simplex, and means that are linear in them."""

import math

import pytest
import torch

from bounds.theorems import PerExpert, Weights
from bounds.theorems.weights import at
from bounds.types import Estimate, InputError
from tests.experts_world import ALPHA, BETA, WEIGHTS, losses


@pytest.mark.parametrize(
    ("alpha", "beta"), [((0.5, 0.5), BETA), (ALPHA, (0.5, 0.6, 0.2)), ((1.2, -0.2, 0.0), BETA), ((), ())]
)
def test_weights_off_the_simplex_are_refused(alpha, beta):
    with pytest.raises(InputError):
        Weights(alpha, beta)


def test_weights_are_kept_as_tuples_of_floats():
    assert Weights(torch.tensor(ALPHA, dtype=torch.float64).tolist(), list(BETA)) == WEIGHTS
    assert Weights([1], [1]).alpha == (1.0,)


def test_the_value_and_its_error_are_those_of_the_averaged_examples():
    """The experts share the examples: the error is that of the beta-average, not a sum over experts."""
    tables = losses()
    value, parts = at(PerExpert(tuple(tables)), WEIGHTS, "gap")
    means = [t @ torch.tensor(BETA, dtype=torch.float64) for t in tables]
    assert value.value == pytest.approx(sum(a * float(m.mean()) for a, m in zip(ALPHA, means, strict=True)))
    variance = sum(a**2 * float(m.var()) / len(m) for a, m in zip(ALPHA, means, strict=True))
    assert value.stderr == pytest.approx(math.sqrt(variance))
    for j, part in enumerate(parts):
        assert part.value == pytest.approx(sum(a * float(t[:, j].mean()) for a, t in zip(ALPHA, tables, strict=True)))
    assert value.value == pytest.approx(sum(b * p.value for b, p in zip(BETA, parts, strict=True)))


def test_an_average_alone_has_no_parts():
    value, parts = at(PerExpert(tuple(t[:, 0] for t in losses())), WEIGHTS, "gap")
    assert parts == ()
    assert value.n == 150


def test_estimates_per_expert_share_their_examples():
    value, parts = at([Estimate(0.1, 0.01, 9), Estimate(0.2, 0.02, 9), Estimate(0.3, 0.03, 9)], WEIGHTS, "gap")
    assert value.value == pytest.approx(0.01 + 0.12 + 0.09)
    assert value.stderr == pytest.approx(0.001 + 0.012 + 0.009)
    assert len(parts) == 3
