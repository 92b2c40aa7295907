"""DC-Merge against worlds where the answer is known, and against loops in NumPy."""

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging.closed_form.directional import DirectionSettings, directional, smoothed
from tests.tolerances import assert_near


def settings(**values):
    return DirectionSettings(**{"scale": 1.0, "density": 1.0, **values})


def random_matrices(tasks=2, rows=6, columns=4):
    return torch.randn(tasks, rows, columns, dtype=torch.float64)


def orthogonal_tasks():
    """Two tasks of rank 2 in orthogonal spaces of rows and columns."""
    deltas = torch.zeros(2, 6, 4, dtype=torch.float64)
    deltas[0, :3, :2], deltas[1, 3:, 2:] = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    return deltas


def test_one_task_is_returned():
    deltas = random_matrices(1)
    assert_near(directional(deltas, settings()), deltas[0])


def test_tasks_without_common_directions_are_added_up():
    deltas = orthogonal_tasks()
    assert_near(directional(deltas, settings()), deltas.sum(dim=0))


def test_smoothing_by_hand():
    sigma = torch.tensor([6.0, 3.0, 3.0], dtype=torch.float64)
    assert smoothed(sigma, "none", 5.0).tolist() == [6, 3, 3]
    assert smoothed(sigma, "average", 5.0).tolist() == [4, 4, 4]
    assert smoothed(sigma, "linear", 5.0).tolist() == pytest.approx([16 / 3, 4, 8 / 3])  # ratio 2, which is below 5
    assert smoothed(torch.tensor([9.0, 2.0, 1.0]).double(), "linear", 3.0).tolist() == pytest.approx([6, 4, 2])
    assert smoothed(torch.tensor([9.0, 2.0, 1.0]).double(), "linear", 1.0).tolist() == pytest.approx([4, 4, 4])


def test_average_smoothing_makes_every_direction_of_a_task_equally_strong():
    deltas = orthogonal_tasks()
    found = directional(deltas, settings(smoothing="average"))
    for delta, own in zip(deltas, (found[:3, :2], found[3:, 2:]), strict=True):
        assert_near(torch.linalg.svdvals(own), torch.linalg.svdvals(delta).sum().expand(2) / 2)


def by_loops(deltas, density, ratio=None, masked=True):
    """The same in NumPy, entry by entry: U (UᵀU)^(-1/2) by eigenvalues."""
    count = min(deltas.shape[1:]) // len(deltas)
    lefts, rights, taus = [], [], []
    for delta in deltas:
        u, s, vh = np.linalg.svd(delta)
        values = s[:count]
        if ratio is not None:
            line = np.linspace(min(ratio, values[0] / values[-1]), 1, count)
            values = values.sum() * line / line.sum()
        lefts, rights = [*lefts, u[:, :count]], [*rights, vh[:count].T]
        taus.append(sum(values[i] * np.outer(u[:, i], vh[i]) for i in range(count)))

    def whitened(columns):
        matrix = np.concatenate(columns, axis=1)
        values, basis = np.linalg.eigh(matrix.T @ matrix)
        return matrix @ basis @ np.diag(values**-0.5) @ basis.T

    left, right = whitened(lefts), whitened(rights)
    inside = [left.T @ tau @ right for tau in taus]
    size = inside[0].shape[0]
    keep = max(1, int(density * size**2))
    for matrix in inside:
        matrix[np.abs(matrix) < np.sort(np.abs(matrix), axis=None)[-keep]] = 0
    merged = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            values = [matrix[i, j] for matrix in inside]
            agree = [value for value in values if value != 0 and np.sign(value) == np.sign(sum(values))]
            if agree and (i // count == j // count or not masked):
                merged[i, j] = np.mean(agree)
    return left @ merged @ right.T


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [None, 1.0, 1.5])
@pytest.mark.parametrize("tasks", [2, 3])
def test_against_numpy(tasks, ratio, density):
    deltas = random_matrices(tasks, 9, 6)
    smoothing = "none" if ratio is None else "linear"
    found = directional(deltas, settings(density=density, smoothing=smoothing, ratio=ratio or 5.0))
    assert_near(found, torch.from_numpy(by_loops(deltas.numpy(), density, ratio)))


def test_mutants_are_caught():
    """Without the mask, without smoothing, without the choice of entries: all are other matrices."""
    deltas = random_matrices(2, 8, 8)
    found = directional(deltas, settings(density=0.2, smoothing="linear", ratio=1.2)).numpy()
    assert np.abs(by_loops(deltas.numpy(), 0.2, 1.2) - found).max() < 1e-10
    for mutant in (
        by_loops(deltas.numpy(), 0.2, 1.2, masked=False),
        by_loops(deltas.numpy(), 0.2),
        by_loops(deltas.numpy(), 1.0, 1.2),
    ):
        assert np.abs(mutant - found).max() > 1e-3


def test_low_rank_experts_have_no_directions_beyond_their_rank():
    left, right = torch.randn(2, 8, 1, dtype=torch.float64), torch.randn(2, 1, 8, dtype=torch.float64)
    found = directional(left @ right, settings(rank=3))
    assert int(torch.linalg.matrix_rank(found)) == 2
    assert bool((directional(torch.zeros(2, 8, 8), settings()) == 0).all())


@pytest.mark.parametrize("values", [{"rank": 0}, {"ratio": 0.5}, {"density": 0.0}, {"smoothing": "some"}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=f"{next(iter(values))}: expected"):
        DirectionSettings(**values)
