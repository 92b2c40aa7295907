"""Eigenvalues of the Hessian in coefficients, with errors over groups of examples."""

import math

import pytest
import torch

from diagnostics.sections.flatness import coefficient_eigenvalues

ALPHA = (0.25, 0.75)


def hessians(groups, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for scale in (1.0, 2.0):
        noise = torch.randn(groups, 3, 3, generator=generator, dtype=torch.float64)
        found.append(scale * torch.diag(torch.tensor([3.0, 1.0, -1.0])).double() + spread * (noise + noise.mT) / 2)
    return found


def test_values_are_those_of_the_weighted_mean():
    found = hessians(8, 0.3)
    whole = sum(a * h.mean(dim=0) for a, h in zip(ALPHA, found, strict=True))
    values = torch.linalg.eigvalsh(whole).flip(0)
    got = coefficient_eigenvalues(found, ALPHA)
    assert [e.value for e in got] == pytest.approx(values.tolist())
    assert all(e.n == 16 and e.status == "estimated" for e in got)
    assert coefficient_eigenvalues([], ()) == ()


def test_errors_are_those_of_repetition():
    runs = [coefficient_eigenvalues(hessians(8, 0.3, seed), ALPHA) for seed in range(300)]
    for k in range(3):
        spread = torch.tensor([run[k].value for run in runs]).std()
        claimed = torch.tensor([run[k].stderr for run in runs]).square().mean().sqrt()
        assert float(claimed) == pytest.approx(float(spread), rel=0.15)


def test_one_direction_has_the_error_of_a_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    (got,) = coefficient_eigenvalues([values.view(4, 1, 1)], (1.0,))
    assert (got.value, got.stderr) == (4.0, pytest.approx(float(values.std()) / math.sqrt(4)))
