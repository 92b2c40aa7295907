"""DOGE-TA and OptMerge against their objectives written out in loops, and against what they converge to."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, merge
from merging.closed_form.descent import (
    DenoisedSettings,
    ModificationSettings,
    coefficients,
    denoised,
    least_denoised_interference,
    modification,
    modification_loss,
    shared_directions,
)
from tests.tolerances import assert_near


def matrices(tasks=3, rows=7, columns=6):
    return torch.randn(tasks, rows, columns, dtype=torch.float64)


def vectors(*stacked):
    base = {f"w{i}": torch.zeros_like(value[0]) for i, value in enumerate(stacked)}
    deltas = [{f"w{i}": value[t] for i, value in enumerate(stacked)} for t in range(len(stacked[0]))]
    return TaskVectors(base, deltas, [f"task{t}" for t in range(len(deltas))])


# DOGE-TA


def doge_loss(delta, taus, lam):
    """Σ_t Σ_rows of squares of: what the merge adds along τ_t's row, less that row's own square; in loops."""
    total = torch.zeros((), dtype=torch.float64)
    for tau in taus:
        for row in range(tau.shape[0]):
            merged = sum(lam[s] * (taus[s][row] + delta[row]) for s in range(len(taus)))
            total = total + (-(tau[row] @ merged) + tau[row] @ tau[row]) ** 2
    return total


def projector(taus, subspace):
    """P by the eigenvalues of Σ_t U_t U_tᵀ, U_t the first min(m, n)/T eigenvectors of τ_t τ_tᵀ."""
    size = min(taus.shape[1:])
    summed = np.zeros((taus.shape[1],) * 2)
    for tau in taus.numpy():
        own = np.linalg.eigh(tau @ tau.T)[1][:, ::-1][:, : size // len(taus)]
        summed += own @ own.T
    first = np.linalg.eigh(summed)[1][:, ::-1][:, : size // subspace]
    return torch.from_numpy(first @ first.T)


def test_all_task_vectors_have_one_size_and_none_none():
    deltas = torch.stack([3 * torch.ones(2, 2), torch.zeros(2, 2)])
    assert coefficients(deltas, 0.6).tolist() == pytest.approx([0.1, 0.0])


def test_the_objective_of_doge_is_the_loops():
    taus, delta = matrices(), torch.randn(7, 6, dtype=torch.float64)
    lam = coefficients(taus, 0.3)
    assert_near(modification_loss(delta, taus, lam), doge_loss(delta, taus, lam))


def test_shared_directions_are_those_that_most_tasks_have():
    common = torch.eye(8, dtype=torch.float64)[:, 0]
    taus = torch.stack([5 * torch.outer(common, torch.randn(8).double()) for _ in range(4)])
    for t in range(4):
        taus[t, t + 1] = 2 * torch.randn(8).double()
    found = shared_directions(taus, 8)
    assert found.shape == (8, 1)
    assert float((found[:, 0] @ common).abs()) == pytest.approx(1, abs=0.02)
    taus = matrices()
    assert_near(shared_directions(taus, 2) @ shared_directions(taus, 2).T, projector(taus, 2))
    assert shared_directions(taus, 9).shape == (7, 0)


@pytest.mark.parametrize("subspace", [2, 3, 9])
def test_the_modification_is_adam_on_the_loops_projected_gradient(subspace):
    taus = matrices()
    settings = ModificationSettings(eta=0.5, subspace=subspace, steps=6, learning_rate=0.02)
    leaf = torch.zeros(7, 6, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([leaf], lr=0.02)
    lam, p = coefficients(taus, 0.5), projector(taus, subspace)
    for _ in range(6):
        (slope,) = torch.autograd.grad(doge_loss(leaf, taus, lam), [leaf])
        leaf.grad = slope - p @ slope
        adam.step()
    assert_near(modification(taus, settings), leaf.detach())
    if subspace < 9:
        free = modification(taus, ModificationSettings(eta=0.5, subspace=9, steps=6, learning_rate=0.02))
        assert float((free - leaf.detach()).abs().max()) > 0.02, "the projection matters"


def test_without_a_subspace_the_modification_descends_to_no_conflict_at_all():
    """As many inner products per row as tasks, fewer than columns: the least loss is 0."""
    taus = matrices()
    lam, losses = coefficients(taus, 0.5), []
    for steps in (1, 100, 2000):
        found = modification(taus, ModificationSettings(eta=0.5, subspace=9, steps=steps, learning_rate=0.05))
        losses.append(float(modification_loss(found, taus, lam)))
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-6 * losses[0]


def test_doge_ta_masks_what_it_has_modified():
    taus, bias = matrices(), torch.randn(3, 5, dtype=torch.float64)
    settings: dict[str, Any] = {"eta": 0.5, "subspace": 3, "steps": 4, "learning_rate": 0.02}
    found = merge("doge_ta", vectors(taus, bias), (), density=0.4, **settings).merged
    delta = modification(taus, ModificationSettings(**settings))
    expected = torch.zeros(7, 6, dtype=torch.float64)
    for t in range(3):
        flat = torch.cat([taus[t].flatten(), bias[t]]).abs()
        least = flat.sort().values[len(flat) - round(0.4 * len(flat))]
        for i in range(7):
            for j in range(6):
                if abs(taus[t, i, j]) >= least:
                    expected[i, j] += 0.5 / taus[t].norm() * (taus[t, i, j] + delta[i, j])
    assert_near(found["w0"], expected)
    assert_near(found["w1"], bias.mean(dim=0))
    assert_near(
        merge("doge_ta", vectors(taus, bias), (), density=0.4, scale=0.5, **settings).merged["w0"], expected / 2
    )


def test_experts_of_half_the_size_make_the_same_merge_of_doge_ta_without_descent():
    taus = matrices()
    settings: dict[str, Any] = {"learning_rate": 0.0, "density": 1.0}
    found, half = (merge("doge_ta", vectors(x), (), **settings).merged["w0"] for x in (taus, taus / 2))
    assert_near(found, half)
    assert float(found.norm()) <= 3 * 0.07


# OptMerge


def optmerge_by_triplets(taus, form, steps, rate):
    """The released procedure for each kind of expert: Σ_t ‖(τ_m - τ̃_t) (Σ_k V_kᵀ)ᵀ‖²/‖τ_t‖², by autograd."""
    tasks, rows, columns = taus.shape
    count, mean = min(rows, columns) // tasks, taus.mean(dim=0)
    targets, rights = [], []
    for tau in taus:
        centred = tau - mean if form == "full" else tau
        u, s, vh = (torch.from_numpy(x) for x in np.linalg.svd(centred.numpy()))
        low = sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(count))
        targets.append(mean + low if form == "full" else low)
        _, s, vh = (torch.from_numpy(x) for x in np.linalg.svd(tau.numpy()))
        rights.append(s[:count, None] * vh[:count])
    leaf = (taus.sum(dim=0) if form == "full" else mean.clone()).requires_grad_()
    made = {
        "full": lambda: torch.optim.Adam([leaf], lr=rate),
        "lora": lambda: torch.optim.SGD([leaf], lr=rate, momentum=0.9),
    }[form]()
    for _ in range(steps):
        parts = [
            ((leaf - target) @ right.T).square().sum() / tau.square().sum()
            for tau, target, right in zip(taus, targets, rights, strict=True)
        ]
        made.zero_grad()
        torch.stack(parts).sum().backward()
        made.step()
    return leaf.detach()


@pytest.mark.parametrize("form", ["full", "lora"])
@pytest.mark.parametrize("rate", [None, 0.03])
def test_optmerge_is_the_released_descent_for_each_kind_of_expert(form, rate):
    taus = matrices()
    found = merge("optmerge", vectors(taus), (), form=form, steps=7, learning_rate=rate, scale=1.0).merged["w0"]
    default = {"full": 1e-5, "lora": 1e-4}[form]
    assert_near(found, optmerge_by_triplets(taus, form, 7, default if rate is None else rate))
    other = {"full": "lora", "lora": "full"}[form]
    assert float((found - optmerge_by_triplets(taus, other, 7, 0.03)).norm()) > 0.1


def test_optmerge_for_lora_descends_to_the_least_squares_solution_of_its_own_rows():
    """Started at the mean of rank-2 form, it stays in their rows; there the minimum of the quadratic is one point."""
    taus = torch.randn(3, 7, 2, dtype=torch.float64) @ torch.randn(3, 2, 30, dtype=torch.float64)
    targets, weights = denoised(taus, "lora")
    assert_near(targets, taus)
    found = least_denoised_interference(taus, DenoisedSettings(form="lora", steps=4000, learning_rate=0.1))
    root = [torch.linalg.svd(tau)[2][:2] * torch.linalg.svdvals(tau)[:2, None] / tau.norm() for tau in taus]
    left = torch.cat(root).numpy()
    right = torch.cat([r @ tau.T for r, tau in zip(root, taus, strict=True)]).numpy()
    expected = torch.from_numpy(np.linalg.lstsq(left, right, rcond=None)[0].T)
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
    assert_near(weights.mT, weights)


def test_what_is_truncated_is_the_difference_from_the_mean_for_full_fine_tuning():
    taus = matrices(tasks=2)
    targets = denoised(taus, "full")[0]
    assert_near(targets.mean(dim=0), taus.mean(dim=0))
    for target, tau in zip(targets, taus, strict=True):
        values = torch.linalg.svdvals(tau - taus.mean(dim=0))
        assert float((target - tau).norm()) == pytest.approx(float(values[3:].norm()))
    alone = denoised(taus, "lora")[0]
    assert float((alone[0] - taus[0]).norm()) == pytest.approx(float(torch.linalg.svdvals(taus[0])[3:].norm()))


def test_settings_out_of_range_are_refused():
    wrong: list[tuple[type, dict[str, Any]]] = [
        (ModificationSettings, {"eta": -1.0}),
        (ModificationSettings, {"subspace": 0}),
        (ModificationSettings, {"density": 0.0}),
        (ModificationSettings, {"steps": 0}),
        (ModificationSettings, {"learning_rate": math.inf}),
        (DenoisedSettings, {"form": "half"}),
        (DenoisedSettings, {"steps": 0}),
        (DenoisedSettings, {"learning_rate": -1.0}),
    ]
    for settings, values in wrong:
        with pytest.raises(InputError, match=f"{next(iter(values))}: expected"):
            settings(**values)
