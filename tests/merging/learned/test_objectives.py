"""Rows of objectives against their definitions (scipy's), at ordinary and at very large scores."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from merging.learned.objectives import OBJECTIVES
from tests.merging.learned.test_loop import gradient

U = 2.0


def mean(rows):
    return float(np.mean(list(rows)))


DEFINITIONS = {
    "kl": lambda s, t, p, q: mean(entropy(a, b) for a, b in zip(p, q, strict=True)),
    "reverse-kl": lambda s, t, p, q: mean(entropy(b, a) for a, b in zip(p, q, strict=True)),
    "jensen-shannon": lambda s, t, p, q: mean(jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)),
    "cross-entropy": lambda s, t, p, q: mean(-math.log(b[a.argmax()]) for a, b in zip(p, q, strict=True)),
    "squared": lambda s, t, p, q: float((((s - t) / U) ** 2).mean()),
    "entropy": lambda s, t, p, q: mean(entropy(b) for b in q),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_is_the_definition(name):
    student, teacher = 3 * torch.randn(6, 4, dtype=torch.float64), 3 * torch.randn(6, 4, dtype=torch.float64)
    s, t = student.numpy(), teacher.numpy()
    expected = DEFINITIONS[name](s, t, softmax(t / U, axis=1), softmax(s / U, axis=1))
    assert float(OBJECTIVES[name](student, teacher, U)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_matches_finite_differences(name):
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: OBJECTIVES[name](s, teacher, U), (student,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_finite_at_scores_of_200(name, dtype):
    student = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0], [-200.0, 200.0, 0.0]], dtype=dtype)
    value = OBJECTIVES[name](student, teacher, 1.0)
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(gradient(student)).all())


def test_jensen_shannon_is_symmetric_and_at_most_ln_2():
    left, right = torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])
    distance = OBJECTIVES["jensen-shannon"]
    assert float(distance(left, right, 1.0)) == pytest.approx(math.log(2))
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    assert float(distance(a, b, 1.0)) == pytest.approx(float(distance(b, a, 1.0)), rel=1e-5)
    assert float(distance(a, a, 1.0)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", ["kl", "reverse-kl", "jensen-shannon", "squared"])
def test_equal_scores_are_a_stationary_point(name):
    scores = torch.randn(5, 3, dtype=torch.float64)
    student = scores.clone().requires_grad_()
    OBJECTIVES[name](student, scores, U).backward()
    assert float(gradient(student).abs().max()) < 1e-12
