"""Singular value calibration against worlds where the answer is known, and against loops in NumPy."""

import numpy as np
import pytest
import torch

from merging import TaskVectors, merge
from merging.post.svc import calibrated, projection_coefficients
from tests.tolerances import assert_near


def random_matrices(tasks=3, rows=6, columns=5):
    return torch.randn(tasks, rows, columns, dtype=torch.float64)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_equal_experts_added_up_are_the_expert_again(tasks, share):
    """s = T·share in every direction, so that σ goes back to the expert's, where it is above the floor."""
    delta = random_matrices(1)[0]
    deltas = delta.expand(tasks, -1, -1)
    left = torch.linalg.svd(delta, full_matrices=False)[0]
    expected = torch.full((tasks, 5), tasks * share, dtype=torch.float64)
    assert_near(projection_coefficients(left, tasks * share * delta, deltas), expected)
    assert_near(calibrated(tasks * share * delta, deltas, 0.01), delta)


def test_experts_without_common_directions_stay_as_they_were_added_up():
    """Each direction is one task's alone: s is 1 for it and 0, at the floor, for the others."""
    deltas = torch.zeros(2, 6, 4, dtype=torch.float64)
    deltas[0, :3, :2], deltas[1, 3:, 2:] = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    total = deltas.sum(dim=0)
    for floor in (1.0, 0.5, None):
        factor = 2 / (1 + (0.5 if floor is None else floor))
        assert_near(calibrated(total, deltas, floor), factor * total)


def by_loops(merged, deltas, floor):
    u, sigma, vh = np.linalg.svd(merged)
    result = np.zeros_like(merged)
    for r, value in enumerate(sigma):
        whole, terms = u[:, r] @ merged, []
        for delta in deltas:
            own = u[:, r] @ delta
            terms.append(max(floor, float(whole @ own / (own @ own))))
        result += len(deltas) / sum(terms) * value * np.outer(u[:, r], vh[r])
    return result


@pytest.mark.parametrize("floor", [0.1, 1 / 3, 1.0])
def test_against_numpy_direction_by_direction(floor):
    deltas = random_matrices(3, 6, 6)
    merged = 0.4 * deltas.sum(dim=0)
    assert_near(calibrated(merged, deltas, floor), torch.from_numpy(by_loops(merged.numpy(), deltas.numpy(), floor)))


def test_mutants_are_caught():
    """Right vectors in place of left ones, the mean of 1/s, negative s not cut off: all are other matrices."""
    deltas = random_matrices(3, 6, 6)
    deltas[2] = -0.7 * deltas[0] + 0.1 * deltas[2]
    merged, right = deltas.sum(dim=0), by_loops(deltas.sum(dim=0).numpy(), deltas.numpy(), 0.2)
    u, sigma, vh = np.linalg.svd(merged.numpy())
    s = projection_coefficients(torch.from_numpy(u), merged, deltas).numpy()
    assert (s < 0).any()
    mutants = {
        "input space": by_loops(merged.T.numpy(), deltas.mT.numpy(), 0.2).T,
        "mean of inverses": u * ((1 / s.clip(0.2)).mean(0) * sigma) @ vh,
        "not cut off": u * (sigma / s.mean(0)) @ vh,
        "cut off after the mean": u * (sigma / s.mean(0).clip(0.2)) @ vh,
    }
    found = calibrated(merged, deltas, 0.2).numpy()
    assert np.abs(found - right).max() < 1e-10
    for name, mutant in mutants.items():
        assert np.abs(mutant - right).max() > 1e-3, name


def test_directions_never_grow_with_floor_one():
    deltas = random_matrices()
    for scale in (0.1, 1.0, 3.0):
        before = scale * deltas.sum(dim=0)
        u, sigma, _ = torch.linalg.svd(before, full_matrices=False)
        found = torch.linalg.vector_norm(u.T @ calibrated(before, deltas, 1.0), dim=1)
        assert bool((found <= sigma * (1 + 1e-12)).all())
    assert bool((found < 0.9 * sigma).any())


def test_rounding_of_a_task_is_no_response():
    """A task that lies in another direction but for rounding: its share of a direction must not make it vanish."""
    first, second = torch.zeros(2, 4, 4, dtype=torch.float64)
    first[0, 0], second[1, 1] = 1.0, 1.0
    first[1, 1] = 1e-17
    found = calibrated(first + second, torch.stack([first, second]), 1.0)
    assert_near(found, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]).double()))


def test_matrices_of_convolutions_and_vectors():
    deltas = random_matrices(2, 4, 12)
    tensors = {"conv": deltas.reshape(2, 4, 3, 2, 2), "flat": deltas, "bias": torch.randn(2, 3, dtype=torch.float64)}
    base = {name: torch.randn_like(value[0]) for name, value in tensors.items()}
    tv = TaskVectors(base, [{n: v[t] for n, v in tensors.items()} for t in range(2)], ["a", "b"])
    found = merge("task_arithmetic:scale=1+svc", tv).merged
    update = {name: value - base[name] for name, value in found.items()}
    assert_near(update["conv"].reshape(4, 12), update["flat"])
    assert_near(update["flat"], calibrated(deltas.sum(dim=0), deltas, 0.5))
    assert_near(update["bias"], tensors["bias"].sum(dim=0))  # vectors have no spectrum
