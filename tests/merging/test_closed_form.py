"""Each row in closed form against a hand-computed example and an independent computation."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.types import InputError
from merging import METHODS, TaskVectors, merge
from merging.closed_form import scale, sparse, spectral, tensors
from merging.closed_form.scale import MEAN_GRID, SUM_GRID, ScaleSettings
from merging.closed_form.slerp import interpolate
from merging.draws import task_generators
from merging.suites import toy
from merging.task import mean_accuracy
from tests.laws import chosen
from tests.tolerances import assert_near


def vectors(*deltas: list[float], **more: list[Tensor]) -> TaskVectors:
    """Task vectors of one tensor ``w`` given as lists, and of others given as tensors; θ_0 = 0."""
    stacked = {"w": [torch.tensor(delta, dtype=torch.float64) for delta in deltas], **more}
    experts = [{name: parts[t] for name, parts in stacked.items()} for t in range(len(deltas))]
    base = {name: torch.zeros_like(parts[0]) for name, parts in stacked.items()}
    return TaskVectors(base, experts, [f"task{t}" for t in range(len(deltas))])


def random_matrices(tasks=3, rows=5, columns=4):
    return torch.randn(tasks, rows, columns, dtype=torch.float64)


def merged(method, tv, **settings):
    return merge(method, tv, (), **settings).merged


# Shared routines


def test_the_largest_entries_are_chosen_over_the_whole_model_per_task():
    tv = vectors(
        [1.0, -5.0, 2.0], [0.1, 0.2, 0.3], b=[torch.tensor([4.0, -3.0]).double(), torch.tensor([9.0, 8.0]).double()]
    )
    thresholds = tensors.largest_threshold(tv, 0.4)
    assert thresholds.tolist() == [4.0, 8.0]
    assert tensors.keep_from(tv.stacked["w"], thresholds).tolist() == [[0, -5, 0], [0, 0, 0]]
    assert tensors.keep_from(tv.stacked["b"], thresholds).tolist() == [[4, 0], [9, 8]]
    assert tensors.keep_from(tv.stacked["w"], tensors.largest_threshold(tv, 1.0)).tolist() == tv.stacked["w"].tolist()
    assert tensors.largest_threshold(tv, 1e-9).tolist() == [5.0, 9.0], "at least one entry"


def test_the_mean_is_taken_of_those_with_the_elected_sign():
    deltas = torch.tensor([[3.0, 1.0, 0.0, 2.0], [1.0, -4.0, 0.0, -2.0], [-1.0, 0.0, 5.0, 0.0]])
    assert tensors.disjoint_mean(deltas).tolist() == [2.0, -4.0, 5.0, 0.0]


def test_dropping_keeps_the_mean_and_follows_the_name_of_the_task():
    deltas = torch.ones(2, 20000, dtype=torch.float64)
    kept = tensors.drop(deltas, 0.75, task_generators(["a", "b"], 0))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    deviation = math.sqrt(3 / 20000)  # of the mean of 20,000 entries of variance 0.75/0.25
    assert abs(float(kept[0].mean()) - 1) < 5 * deviation
    assert not torch.equal(kept[0], kept[1])
    turned = tensors.drop(deltas, 0.75, task_generators(["b", "a"], 0))
    assert torch.equal(turned.flip(0), kept)
    assert not torch.equal(tensors.drop(deltas, 0.75, task_generators(["a", "b"], 1)), kept)


def test_directions_of_singular_value_zero_are_left_out():
    left, right = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    u, sigma, v = tensors.thin_svd(left @ right)
    assert (u.shape, sigma.shape, v.shape) == ((6, 2), (2,), (9, 2))
    assert_near(u * sigma @ v.T, left @ right)
    assert tensors.thin_svd(torch.zeros(3, 2))[1].shape == (0,)
    assert tensors.thin_svd(torch.zeros(3, 0))[1].shape == (0,)


def test_orthogonalized_columns_are_the_nearest_orthonormal_ones():
    columns = torch.randn(7, 3, dtype=torch.float64)
    found = tensors.orthogonalize(columns)
    assert_near(found.T @ found, torch.eye(3).double())
    values, basis = np.linalg.eigh((columns.T @ columns).numpy())  # X (XᵀX)^(-1/2), another way to the polar factor
    assert_near(found, columns @ torch.from_numpy(basis @ np.diag(values**-0.5) @ basis.T))
    doubled = torch.cat([columns[:, :1], columns[:, :1]], dim=1)
    unit = columns[:, :1] / columns[:, :1].norm()
    assert_near(tensors.orthogonalize(doubled), unit.expand(-1, 2) / math.sqrt(2))


def test_convolutions_are_read_as_matrices():
    deltas = random_matrices(2, 4, 12)
    folded = vectors([0.0], [0.0], c=list(deltas.reshape(2, 4, 3, 2, 2)))
    flat = vectors([0.0], [0.0], c=list(deltas))
    assert_near(merged("iso_c", folded, scale=1.0)["c"].reshape(4, 12), merged("iso_c", flat, scale=1.0)["c"])


# Rows by hand


def test_ties_by_hand():
    """Keep 2 of 4 entries each; signs of the sums + - + 0; means of the agreeing."""
    tv = vectors([4.0, -1.0, 0.5, 3.0], [2.0, -0.5, 1.0, 0.25], [1.0, -6.0, 0.5, -3.0])
    # trimmed: [4, 0, 0, 3], [2, 0, 1, 0], [0, -6, 0, -3]
    assert merged("ties", tv, density=0.5, scale=1.0)["w"].tolist() == [3.0, -6.0, 1.0, 0.0]
    assert merged("ties", tv, density=0.5, scale=0.5)["w"].tolist() == [1.5, -3.0, 0.5, 0.0]
    # pruning keeps the same entries and adds them up
    assert merged("magnitude", tv, density=0.5, scale=1.0)["w"].tolist() == [6.0, -6.0, 1.0, 0.0]


def test_consensus_by_hand():
    """Sum [4, -1, 3, 5]; a mask holds an entry if |τ_t| >= 0.5 |others|."""
    tv = vectors([2.0, 1.0, 3.0, 4.0], [2.0, -2.0, 0.0, 1.0])
    # masks: [1, 1, 1, 1] and [1, 1, 0, 0]
    assert merged("consensus", tv, mask_threshold=0.5, scale=1.0)["w"].tolist() == [4.0, -1.0, 0.0, 0.0]
    assert merged("consensus", tv, mask_threshold=0.5, agreement=1, scale=1.0)["w"].tolist() == [4.0, -1.0, 3.0, 5.0]


def test_dare_without_dropping_is_what_it_builds_on():
    tv = vectors([4.0, -1.0, 0.5], [2.0, 3.0, -1.0])
    assert (
        merged("dare_linear", tv, drop_rate=0.0, scale=0.4)["w"].tolist()
        == merged("task_arithmetic", tv, scale=0.4)["w"].tolist()
    )
    assert (
        merged("dare_ties", tv, drop_rate=0.0, scale=0.4)["w"].tolist()
        == merged("ties", tv, density=1.0, scale=0.4)["w"].tolist()
    )


def test_dare_is_right_on_average():
    tv = vectors([4.0, -1.0, 0.5], [2.0, 3.0, -1.0])
    draws = torch.stack([merged("dare_linear", tv, drop_rate=0.5, scale=1.0, seed=s)["w"] for s in range(400)])
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert bool(((draws.mean(dim=0) - torch.tensor([6.0, 2.0, -0.5])).abs() < 4.5 * error).all())


def test_pcb_clips_outliers_by_hand():
    """A quarter at either end: |τ| is 2, 2, 3, 3. The least score, that of the first entry, has weight 0."""
    assert merged("pcb", vectors([1.0, -2.0, 3.0, -100.0]), density=1.0, clip=0.25, scale=1.0)["w"].tolist() == (
        pytest.approx([0.0, -2.0, 3.0, -3.0])
    )
    whole = merged("pcb", vectors([1.0, -2.0, 3.0, -100.0]), density=1.0, scale=1.0)["w"]
    assert whole[3] == pytest.approx(-100.0), "by default nothing is clipped"


@pytest.mark.parametrize("clip", [0.0, 1e-4, 0.07, 0.3])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_pcb_against_the_flattened_computation(density, clip):
    deltas = torch.randn(3, 20, dtype=torch.float64)
    tv = vectors(*deltas[:, :12].tolist(), b=list(deltas[:, 12:].reshape(3, 2, 4)))
    x = deltas.numpy()
    ends = np.sort(np.abs(x), axis=1)[:, [int(20 * clip), int(20 * (1 - clip) - 1)]]
    size = np.clip(np.abs(x), ends[:, :1], ends[:, 1:])
    a = (size - size.min(1, keepdims=True)) / np.ptp(size, axis=1, keepdims=True)
    score = np.exp(3 * a**2) * np.tanh(x * x.sum(0))
    floor = np.sort(score, axis=1)[:, [max(0, 20 - round(density * 20) - 1)]]
    weight = (np.maximum(score, floor) - floor) / (score.max(1, keepdims=True) - floor)
    expected = (weight * np.sign(x) * size).sum(0) / np.maximum(weight.sum(0), 1e-12)
    found = merged("pcb", tv, density=density, clip=clip, scale=1.0)
    assert_near(torch.cat([value.flatten() for value in found.values()]), torch.from_numpy(expected))
    if density < 1:
        assert (weight > 0).sum(1).tolist() == [6, 6, 6]


# Rows by singular vectors


def test_tsv_m_against_numpy_triplet_by_triplet():
    """U⊥ = U (UᵀU)^(-1/2) by eigenvalues, and the product as a sum of outer products."""
    deltas = random_matrices(2, 6, 4)
    triplets = []
    for delta in deltas.numpy():
        u, s, vh = np.linalg.svd(delta)
        triplets += [(s[i], u[:, i], vh[i]) for i in range(2)]  # 4 directions, half of them for each of the two tasks

    def whitened(columns):
        matrix = np.stack(columns, axis=1)
        values, basis = np.linalg.eigh(matrix.T @ matrix)
        return matrix @ basis @ np.diag(values**-0.5) @ basis.T

    left, right = whitened([t[1] for t in triplets]), whitened([t[2] for t in triplets])
    expected = sum(t[0] * np.outer(left[:, i], right[:, i]) for i, t in enumerate(triplets))
    assert_near(spectral.task_singular_vectors(deltas), torch.from_numpy(expected))


def test_tsv_m_adds_up_task_vectors_without_common_directions():
    """Two tasks of rank 2 in orthogonal spaces of rows and columns: nothing interferes, the sum is exact."""
    deltas = torch.zeros(2, 6, 4, dtype=torch.float64)
    deltas[0, :3, :2], deltas[1, 3:, 2:] = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    assert_near(spectral.task_singular_vectors(deltas), deltas.sum(dim=0))


def test_iso_c_is_the_polar_factor_times_the_mean_singular_value():
    """Σσ = tr (AᵀA)^(1/2) and the polar factor A (AᵀA)^(-1/2), without an SVD."""
    deltas = random_matrices()
    total = deltas.sum(dim=0).numpy()
    values, basis = np.linalg.eigh(total.T @ total)
    polar = total @ basis @ np.diag(values**-0.5) @ basis.T
    assert_near(spectral.isotropic(deltas), torch.from_numpy(np.sqrt(values).mean() * polar))


def test_iso_c_of_a_low_rank_sum_has_its_rank():
    left, right = torch.randn(2, 6, 1, dtype=torch.float64), torch.randn(2, 1, 5, dtype=torch.float64)
    found = torch.linalg.svdvals(spectral.isotropic(left @ right))
    nuclear = torch.linalg.svdvals((left @ right).sum(dim=0)).sum()
    assert_near(found, torch.stack([nuclear / 2] * 2 + [nuclear * 0] * 3))


def test_iso_cts_with_nothing_for_the_tasks_is_iso_c():
    deltas = random_matrices()
    assert_near(spectral.isotropic_with_task_spaces(deltas, 1.0), spectral.isotropic(deltas))


def test_iso_cts_against_numpy():
    deltas = random_matrices(2, 6, 5)  # rank 5: floor(0.6 * 5) = 3, round(2/2) = 1 for each task, 3 for the sum
    u, s, vh = np.linalg.svd(deltas.sum(dim=0).numpy())
    lefts, rights, sigmas = list(u[:, :3].T), list(vh[:3]), list(s[:3])
    for delta in deltas.numpy():
        ut, st, vt = np.linalg.svd((np.eye(6) - u[:, :3] @ u[:, :3].T) @ delta)
        lefts, rights, sigmas = [*lefts, ut[:, 0]], [*rights, vt[0]], [*sigmas, st[0]]

    def whitened(columns):
        matrix = np.stack(columns, axis=1)
        values, basis = np.linalg.eigh(matrix.T @ matrix)
        return matrix @ basis @ np.diag(values**-0.5) @ basis.T

    expected = np.mean(sigmas) * whitened(lefts) @ whitened(rights).T
    assert_near(spectral.isotropic_with_task_spaces(deltas, 0.6), torch.from_numpy(expected))


def test_wudi_objective_by_hand():
    deltas = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]).double()
    # at (3, 1): ((3-1)·1)²/1 + ((1-2)·2)²/4
    assert float(spectral.interference(torch.tensor([[3.0, 1.0]]).double(), deltas)) == pytest.approx(4 + 1)


def test_wudi_gradient_against_autograd():
    deltas = torch.cat([random_matrices(), torch.zeros(1, 5, 4, dtype=torch.float64)])
    at = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(spectral.interference(at, deltas), [at])
    a, b = spectral.interference_slope(deltas)
    assert_near(2 * (at.detach() @ a - b), expected)


def test_wudi_descends_to_the_least_squares_solution():
    """The minimum solves τ_m A = B; Adam with a falling rate reaches it, and the row moves towards it."""
    deltas = random_matrices()
    rows = torch.cat([(d.T / d.norm()).T for d in deltas])  # (τ_m - τ_t) τ_tᵀ/‖τ_t‖ stacked is a least-squares problem
    targets = torch.cat([d @ d.T / d.norm() for d in deltas], dim=1)
    exact = np.linalg.lstsq(rows.numpy(), targets.T.numpy(), rcond=None)[0].T
    least = float(spectral.interference(torch.from_numpy(exact), deltas))
    values = [
        float(spectral.interference(spectral.least_interference(deltas, n, 0.01), deltas)) for n in (1, 30, 300, 3000)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert least * (1 - 1e-9) <= values[-1] < least + 0.01 * (values[0] - least)


def test_vectors_of_one_axis_are_averaged_by_rows_of_matrices():
    tv = vectors([1.0, 2.0], [3.0, -4.0])
    for method in ("tsv_m", "iso_c", "iso_cts", "wudi"):
        settings = {} if method == "wudi" else {"scale": 1.0}
        assert merged(method, tv, **settings)["w"].tolist() == [2.0, -1.0]


# Pairs


def test_slerp_goes_along_the_great_circle():
    first, second = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * math.pi / 2
        expected = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)], dtype=torch.float64)
        assert_near(interpolate(first, second, share), expected)
    assert_near(interpolate(first, 3 * first, 0.5), 2 * first)
    assert_near(interpolate(first, 0 * first, 0.25), 0.75 * first)
    assert bool(torch.isfinite(interpolate(first, -first, 0.5)).all())


def test_slerp_interpolates_weights_not_task_vectors_and_takes_two():
    suite = toy.build()
    tv = TaskVectors(suite.task_vectors.base, suite.task_vectors.deltas[:2], suite.task_vectors.names[:2])
    found = merge("slerp", tv, suite.tasks[:2], share=0.3).merged["first.weight"]
    assert_near(found, interpolate(tv.expert(0)["first.weight"], tv.expert(1)["first.weight"], 0.3))
    with pytest.raises(InputError, match="slerp: expected 2 experts; got 3"):
        merge("slerp", suite.task_vectors, suite.tasks)


# Scale


SUMS = ("task_arithmetic", "magnitude", "dare_linear", "consensus", "breadcrumbs")
SCALED = [name for name, row in METHODS.items() if issubclass(row.settings, ScaleSettings)]


@pytest.mark.parametrize("method", SCALED)
def test_every_row_with_a_scale_takes_the_best_of_its_grid(method):
    suite, grid = toy.build(overlap=0.6), SUM_GRID if method in SUMS else MEAN_GRID
    settings: dict[str, Any] = chosen(method, steps=2, examples=10)
    found = merge(method, suite.task_vectors, suite.tasks, scale=None, **settings)
    merges = {s: merge(method, suite.task_vectors, suite.tasks, scale=s, **settings).merged for s in grid}
    values = {s: mean_accuracy(suite.tasks, params, "validation") for s, params in merges.items()}
    looked = dict(zip(found.history["scale"], found.history["validation_accuracy"], strict=True))
    assert looked == {s: values[s] for s in looked}
    assert found.used is not None
    assert found.used["validation"] == len(grid), "the price is that of the whole grid"
    assert len(looked) <= 10
    (best,) = found.history["chosen_scale"]
    assert best == min(s for s, value in looked.items() if value == max(looked.values()))
    assert_near(found.merged["first.weight"], merges[best]["first.weight"])


@pytest.mark.parametrize("peak", range(20))
def test_the_search_finds_the_peak_of_the_whole_grid_with_half_the_looks(peak, monkeypatch):
    monkeypatch.setattr(scale, "mean_quality", lambda tasks, params, split: -abs(params["s"] - SUM_GRID[peak]))
    found, looked = scale.best_scale((), lambda s: {"s": torch.tensor(s)}, SUM_GRID)
    assert found == SUM_GRID[peak]
    assert len(looked) <= 10


def test_rows_beat_averaging_where_their_assumptions_hold():
    """Experts fine-tuned in full, on tasks that share half of their coordinates: mean test accuracy of three worlds."""
    suites = [toy.build(overlap=0.5, seed=seed) for seed in range(3)]

    def accuracy(method, **settings):
        return sum(
            mean_accuracy(s.tasks, merge(method, s.task_vectors, s.tasks, **settings).merged, "test") for s in suites
        )

    average, calibration = accuracy("average"), {"examples": 24}
    for method in ("task_arithmetic", "ties", "pcb", "tsv_m", "iso_c", "iso_cts"):
        assert accuracy(method) > average + 3 * 0.05, method
    for method in ("fisher", "regmean", "regmean_plus_plus"):
        assert accuracy(method, **calibration) > average + 3 * 0.05, method
    assert accuracy("wudi", learning_rate=1e-2) > average + 3 * 0.05


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (sparse.DensitySettings, {"density": 0.0}),
        (sparse.DensitySettings, {"density": 1.1}),
        (sparse.DropSettings, {"drop_rate": 1.0}),
        (sparse.ConsensusSettings, {"agreement": 0}),
        (sparse.CompetitionSettings, {"clip": 0.5}),
        (sparse.CompetitionSettings, {"density": 0.0}),
        (spectral.CommonSpaceSettings, {"common": 0.0}),
        (spectral.InterferenceSettings, {"steps": 0}),
    ],
)
def test_settings_out_of_range_are_refused(settings, values):
    with pytest.raises(InputError, match=f"{next(iter(values))}: expected"):
        settings(**values)
