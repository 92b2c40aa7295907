"""ACE-Merging against the least-squares problem that it solves, and against loops in NumPy."""

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging.closed_form.covariance import CovarianceSettings, ace, refinement, size_spread
from tests.tolerances import assert_near


def random_matrices(tasks=3, rows=7, columns=5):
    return torch.randn(tasks, rows, columns, dtype=torch.float64)


ALIKE = {"heterogeneity": 1e9}
DIFFER = {"heterogeneity": 0.0}


def covariance(delta):
    return np.cov(delta, rowvar=False) * (len(delta) - 1)


def test_the_spread_of_sizes_by_hand():
    """‖τ‖² = e, e³: logs 1 and 3, variance 2, mean 2."""
    deltas = torch.zeros(2, 1, 2, dtype=torch.float64)
    deltas[:, 0, 0] = torch.tensor([0.5, 1.5]).double().exp()
    assert size_spread(deltas) == pytest.approx(2 / 4)
    assert size_spread(deltas[:1]) == 0
    assert size_spread(deltas[:1].expand(3, -1, -1)) == pytest.approx(0)


def by_numpy(deltas, ridge, differ=False, share=0.3, prior=True, centred=False):
    covariances = [covariance(delta) for delta in deltas]
    ridges = [ridge] * len(deltas)
    if differ:
        ridges = [ridge / np.trace(c) for c in covariances]
        covariances = [c / np.trace(c) for c in covariances]
    weights = [c + r * np.eye(len(c)) for c, r in zip(covariances, ridges, strict=True)]
    means = np.sum(covariances, axis=0).mean(axis=0)
    total = sum(weights) + (np.outer(np.ones(len(means)), means) if prior else 0)
    numerators = [delta - delta.mean(axis=0) if centred else delta for delta in deltas]
    merged = sum(n @ w for n, w in zip(numerators, weights, strict=True)) @ np.linalg.inv(total)
    if differ:
        mean = sum(covariances) / len(deltas)
        rest = sum(delta @ (c - mean) for delta, c in zip(deltas, covariances, strict=True))
        u, s, vh = np.linalg.svd(merged + rest)
        k = max(1, int(share * min(merged.shape)))
        merged = merged + s[:k].mean() * u[:, :k] @ vh[:k]
    return merged


@pytest.mark.parametrize("differ", [False, True])
@pytest.mark.parametrize("ridge", [1e-5, 0.1])
def test_against_numpy(ridge, differ):
    deltas = random_matrices() * torch.tensor([1.0, 0.1, 4.0]).double()[:, None, None]
    found = ace(deltas, CovarianceSettings(ridge=ridge, refined=0.5, **(DIFFER if differ else ALIKE)))
    assert_near(found, torch.from_numpy(by_numpy(deltas.numpy(), ridge, differ, 0.5)))


def test_without_the_prior_it_is_the_least_squares_fit_to_its_own_rows():
    """min_W Σ_t ‖(W - τ_t) X_tᵀ‖² + ε ‖W - τ_t‖², X_t the centred rows of τ_t: the gradient at the answer is 0.

    The prior C = 1 cᵀ adds 1 cᵀ to the normal equations, so that τ_m (Σ_t S_t + C) = Σ_t τ_t S_t holds and no more.
    """
    deltas, ridge = random_matrices(), 0.05
    found = ace(deltas, CovarianceSettings(ridge=ridge, **ALIKE)).requires_grad_()
    rows = deltas - deltas.mean(dim=1, keepdim=True)
    away = found - deltas
    loss = (away @ rows.mT).square().sum() + ridge * away.square().sum()
    (slope,) = torch.autograd.grad(loss, [found])
    means = torch.from_numpy(sum(covariance(d.numpy()) for d in deltas)).mean(dim=0)
    assert_near(slope / 2, -found.detach().sum(dim=1, keepdim=True) * means)


def test_mutants_are_caught():
    deltas = random_matrices()
    found = ace(deltas, CovarianceSettings(ridge=0.1, **ALIKE)).numpy()
    for mutant in (by_numpy(deltas.numpy(), 0.1, prior=False), by_numpy(deltas.numpy(), 0.1, centred=True)):
        assert np.abs(mutant - found).max() > 1e-3
    differ = ace(deltas, CovarianceSettings(ridge=0.1, **DIFFER)).numpy()
    assert np.abs(differ - by_numpy(deltas.numpy(), 0.1, differ=True)).max() < 1e-8
    assert np.abs(differ - by_numpy(deltas.numpy(), 0.1)).max() > 1e-3


def test_the_refinement_is_flat_and_of_the_asked_rank():
    merged, deltas = random_matrices(1)[0], random_matrices()
    covariances = torch.stack([torch.from_numpy(covariance(d.numpy())) for d in deltas])
    found = torch.linalg.svdvals(refinement(merged, deltas, covariances, 0.6))
    assert_near(found[:3], found[:1].expand(3))
    assert float(found[3:].max()) < 1e-12 * float(found[0])
    alone = refinement(merged, merged[None], covariances[:1], 1.0)  # Σ_1 - Σ̄ is 0: the polar factor of τ_m
    u, sigma, vh = torch.linalg.svd(merged, full_matrices=False)
    assert_near(alone, sigma.mean() * u @ vh)


def test_a_task_that_left_the_matrix_alone_says_nothing():
    deltas = random_matrices()
    whole = torch.cat([deltas, torch.zeros_like(deltas[:1])])
    for values in (ALIKE, DIFFER, {}):
        given = CovarianceSettings(**values)
        assert_near(ace(whole, given), ace(deltas, given))
    assert bool((ace(torch.zeros(2, 4, 3), CovarianceSettings()) == 0).all())


def test_directions_of_one_task_are_its_own():
    """Inputs in orthogonal coordinates: each task's columns stay, but for the prior and the ridge."""
    deltas = torch.zeros(2, 6, 4, dtype=torch.float64)
    deltas[0, :, :2], deltas[1, :, 2:] = torch.randn(2, 6, 2).double()
    deltas -= deltas.mean(dim=1, keepdim=True)
    found = ace(deltas, CovarianceSettings(ridge=1e-9, **ALIKE))
    total = deltas.sum(dim=0)
    own = torch.from_numpy(sum(covariance(d.numpy()) for d in deltas))
    means = own.mean(dim=0)
    assert_near(found, total @ own @ torch.linalg.inv(own + means.expand(4, -1)), torch.float32)


@pytest.mark.parametrize("values", [{"ridge": 0.0}, {"heterogeneity": -1.0}, {"refined": 0.0}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=f"{next(iter(values))}: expected"):
        CovarianceSettings(**values)
