"""Essential subspace merging against the outputs it is about, and against loops in NumPy."""

import numpy as np
import pytest
import torch

from merging import TaskVectors, merge
from merging.closed_form.essential import (
    EssentialSettings,
    essential,
    essential_directions,
    layer_factors,
    polarized,
    whitened,
)
from merging.closed_form.spectral import task_singular_vectors
from merging.closed_form.statistics import calibration, input_products
from merging.suites import Suite
from tests.laws import world
from tests.tolerances import assert_near


def random_world(tasks=2, rows=6, columns=5, examples=40):
    """Task vectors and inputs whose coordinates differ in size, so that outputs tell other directions than weights."""
    inputs = torch.randn(tasks, examples, columns, dtype=torch.float64) * torch.logspace(-1, 1, columns).double()
    return torch.randn(tasks, rows, columns, dtype=torch.float64), inputs


def products(inputs):
    return [x.T @ x / len(x) for x in inputs]


def test_directions_are_the_principal_ones_of_the_shift_of_outputs():
    (delta,), (inputs,) = random_world(1)
    left, rows = essential_directions(delta, products([inputs])[0], 3)
    shift = (inputs @ delta.T).numpy()
    _, sigma, vh = np.linalg.svd(shift)
    assert_near((left.T @ torch.from_numpy(vh[:3].T)).abs(), torch.eye(3).double())
    assert_near(rows, left.T @ delta)
    lost = ((torch.from_numpy(shift) - torch.from_numpy(shift) @ left @ left.T) ** 2).sum()
    assert float(lost) == pytest.approx((sigma[3:] ** 2).sum()), "what is left out is the rest of the eigenvalues"


def test_singular_directions_of_the_weights_lose_more():
    (delta,), (inputs,) = random_world(1, 8, 8)
    left, _ = essential_directions(delta, products([inputs])[0], 3)
    other = torch.linalg.svd(delta)[0][:, :3]
    shift = inputs @ delta.T

    def lost(basis):
        return float((shift - shift @ basis @ basis.T).square().sum())

    assert lost(left) < 0.5 * lost(other)


def test_directions_without_any_shift_are_left_out():
    (delta,), _ = random_world(1, 6, 5)
    inputs = torch.randn(2, 5, dtype=torch.float64)  # two inputs: two directions
    assert essential_directions(delta, products([inputs])[0], 6)[0].shape == (6, 2)
    assert essential_directions(0 * delta, products([inputs])[0], 6)[0].shape == (6, 0)


def test_polarizing_by_hand():
    assert polarized(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([0.25, 1, 2.25])
    assert polarized(torch.zeros(2)).tolist() == [1, 1]


def test_whitening_keeps_directions_and_the_mean():
    matrix = torch.randn(7, 4, dtype=torch.float64)
    values, basis = np.linalg.eigh((matrix.T @ matrix).numpy())
    polar = matrix.numpy() @ basis @ np.diag(values**-0.5) @ basis.T
    assert_near(whitened(matrix), torch.from_numpy(np.sqrt(values).mean() * polar))
    doubled = torch.cat([matrix[:, :2], matrix[:, :2]], dim=1)
    assert_near(torch.linalg.svdvals(whitened(doubled))[:2], torch.linalg.svdvals(doubled).mean().expand(2))


def by_numpy(deltas, inputs, by_task=True, by_column=True, whiten=True):
    """The released code's computation by its formulas: principal directions by an SVD of the shift itself."""
    count, lefts, rows = max(1, deltas.shape[1] // len(deltas)), [], []
    for delta, x in zip(deltas, inputs, strict=True):
        left = np.linalg.svd(x @ delta.T)[2][:count].T
        lefts, rows = [*lefts, left], [*rows, left.T @ delta]
    if by_task:
        norms = np.array([np.linalg.norm(a) for a in rows])
        rows = [a * (n / norms.mean()) ** 2 for a, n in zip(rows, norms, strict=True)]
    left, right = np.concatenate(lefts, axis=1), np.concatenate(rows)
    if by_column:
        norms = np.linalg.norm(right, axis=0)
        right = right * (norms / norms.mean()) ** 2

    def white(matrix):
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        return s.mean() * u @ vh if whiten else matrix

    return white(left) @ white(right)


@pytest.mark.parametrize("shape", [(6, 5), (6, 9), (12, 7)])
@pytest.mark.parametrize("tasks", [2, 3])
def test_against_numpy(tasks, shape):
    deltas, inputs = random_world(tasks, *shape)
    assert_near(essential(deltas, products(inputs)), torch.from_numpy(by_numpy(deltas.numpy(), inputs.numpy())))


def test_mutants_are_caught():
    deltas, inputs = random_world()
    found = essential(deltas, products(inputs)).numpy()
    mutants = {
        "tasks": by_numpy(deltas.numpy(), inputs.numpy(), by_task=False),
        "columns": by_numpy(deltas.numpy(), inputs.numpy(), by_column=False),
        "whitening": by_numpy(deltas.numpy(), inputs.numpy(), whiten=False),
        "inputs": by_numpy(deltas.numpy(), np.eye(5)[None].repeat(2, axis=0)),
    }
    for name, mutant in mutants.items():
        assert np.abs(mutant - found).max() > 1e-2, name


def test_layers_are_compared_with_their_like():
    vector = {f"blocks.{i}.qkv.weight": torch.full((2, 2), float(v)) for i, v in ((0, 1), (1, 3))}
    vector["head.weight"] = torch.full((2, 2), 7.0)
    found = layer_factors(vector, list(vector))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"blocks.0.qkv.weight": 0.25, "blocks.1.qkv.weight": 2.25, "head.weight": 1.0}
    )


SETTINGS = EssentialSettings(scale=1.0, examples=10)


def test_the_row_takes_the_inputs_of_each_expert():
    suite = world()
    tv = suite.task_vectors
    inputs = calibration(tv, suite.tasks, SETTINGS)
    experts = zip(suite.tasks, map(tv.expert, range(3)), inputs, strict=True)
    seen = [input_products(task.forward, expert, x)["first.weight"] for task, expert, x in experts]
    assert {axis for axis, _ in seen} == {1}
    expected = essential(tv.stacked["first.weight"], [product for _, product in seen])
    found = merge("esm", suite, scale=1.0, examples=10)
    assert_near(found.merged["first.weight"], tv.base["first.weight"] + expected)
    assert found.used == {"calibration": None}
    assert found.history["linear_weights"] == [2.0]


def test_a_weight_that_is_used_as_it_stands_is_merged_as_its_transpose():
    suite = world()
    tv = suite.task_vectors

    def transposed(params):
        return {name: value.T.contiguous() for name, value in params.items()}

    def forward(inner):
        return lambda params, inputs: inner({n: v.T for n, v in params.items()}, inputs)

    vectors = TaskVectors(transposed(tv.base), [transposed(delta) for delta in tv.deltas], tv.names)
    tasks = [task.changed(forward=forward(task.forward)) for task in suite.tasks]
    found = merge("esm", Suite("transposed", vectors, tasks), scale=0.5, examples=10).merged
    expected = merge("esm", suite, scale=0.5, examples=10).merged
    assert_near(found["first.weight"].T, expected["first.weight"])


def test_matrices_that_no_input_meets_are_merged_by_singular_vectors():
    suite = world()
    tv = suite.task_vectors
    extra = torch.randn(3, 6, 6, dtype=torch.float64)
    deltas = [{**delta, "unused": extra[t], "bias": extra[t, 0]} for t, delta in enumerate(tv.deltas)]
    base = {**tv.base, "unused": torch.zeros(6, 6).double(), "bias": torch.zeros(6).double()}
    tasks = [t.changed(forward=lambda p, x, f=t.forward: f({n: p[n] for n in tv.base}, x)) for t in suite.tasks]
    found = merge("esm", Suite("more", TaskVectors(base, deltas, tv.names), tasks), scale=1.0, examples=10).merged
    assert_near(found["unused"], task_singular_vectors(extra))
    assert_near(found["bias"], extra[:, 0].mean(dim=0))
