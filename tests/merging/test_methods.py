"""Laws that every method obeys: one expert, equal experts, no difference, order, seed, save and load."""

from typing import Any

import pytest
import torch

from bounds.types import InputError
from merging import METHODS, TaskVectors, merge
from merging.artifact import load, save
from merging.suites import toy
from merging.task import mean_accuracy

QUICK: dict[str, dict[str, Any]] = {
    "samerging": {"steps": 3, "examples": 8, "batch": 8, "perturbation": "coefficients"},
    "gauss_newton": {"iterations": 3, "examples": 8},
    "tangent": {"examples": 8},
    "task_arithmetic": {},
    "average": {},
}
ROWS = list(METHODS)


def same(left, right, atol=1e-12):
    return all(torch.allclose(left[k], right[k], atol=atol) for k in right)


@pytest.mark.parametrize("method", ROWS)
def test_zero_task_vectors_return_the_base(method):
    suite = toy.build()
    zero = {k: torch.zeros_like(v) for k, v in suite.task_vectors.base.items()}
    tv = TaskVectors(suite.task_vectors.base, [zero] * 3, suite.task_vectors.names)
    assert same(merge(method, tv, suite.tasks, **QUICK[method]).merged, tv.base)


@pytest.mark.parametrize("method", ROWS)
def test_deterministic_and_saved_whole(method, tmp_path):
    suite = toy.build(overlap=0.3)
    first, second = (merge(method, suite.task_vectors, suite.tasks, **QUICK[method]) for _ in range(2))
    assert same(first.merged, second.merged, atol=0)
    save(first, tmp_path / "out.pt")
    assert same(load(tmp_path / "out.pt").merged, first.merged, atol=0)


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_the_order_of_tasks_does_not_matter(method):
    suite = toy.build(overlap=0.3)
    tv = suite.task_vectors
    order = [2, 0, 1]
    permuted = TaskVectors(tv.base, [tv.deltas[i] for i in order], [tv.names[i] for i in order])
    left = merge(method, tv, suite.tasks, **QUICK[method])
    right = merge(method, permuted, [suite.tasks[i] for i in order], **QUICK[method])
    assert same(left.merged, right.merged)


def test_the_order_of_tasks_does_not_matter_to_samerging_on_all_examples():
    """With every example in every step, only the choice of examples depends on the order; here all are chosen."""
    suite = toy.build(overlap=0.3)
    tv, order = suite.task_vectors, [2, 0, 1]
    settings: dict[str, Any] = {"steps": 5, "examples": 24, "batch": 24}
    permuted = TaskVectors(tv.base, [tv.deltas[i] for i in order], [tv.names[i] for i in order])
    left = merge("samerging", tv, suite.tasks, **settings)
    right = merge("samerging", permuted, [suite.tasks[i] for i in order], **settings)
    assert same(left.merged, right.merged, atol=1e-9)


def test_one_task_and_equal_experts_return_the_expert():
    suite = toy.build()
    tv = suite.task_vectors
    one = TaskVectors(tv.base, tv.deltas[:1], tv.names[:1])
    equal = TaskVectors(tv.base, [tv.deltas[0]] * 3, tv.names)
    for vectors in (one, equal):
        tasks = suite.tasks[: len(vectors)]
        assert same(merge("average", vectors, tasks).merged, tv.expert(0))
    assert same(merge("task_arithmetic", one, suite.tasks[:1], scale=1.0).merged, tv.expert(0))
    # An expert that starts at its own teacher has nothing to learn. One step only: Adam divides the gradient by its own
    # size, so rounding noise of 1e-17 grows to a visible step within a few.
    learned = merge("samerging", one, suite.tasks[:1], steps=1, examples=8, perturbation="none")
    assert same(learned.merged, tv.expert(0), atol=1e-8)


def test_task_arithmetic_takes_the_best_scale_of_its_grid():
    suite = toy.build(overlap=0.6)
    found = merge("task_arithmetic", suite.task_vectors, suite.tasks)
    history = found.history
    assert found.coefficients is not None
    best = max(history["validation_accuracy"])
    chosen = history["scale"][history["validation_accuracy"].index(best)]
    assert float(found.coefficients[0, 0]) == chosen
    assert mean_accuracy(suite.tasks, found.merged, "validation") == pytest.approx(best)


def test_unknown_methods_and_settings_are_refused():
    suite = toy.build()
    with pytest.raises(InputError, match="method: expected average or"):
        merge("magic", suite.task_vectors, suite.tasks)
    with pytest.raises(InputError, match="setting of average"):
        merge("average", suite.task_vectors, suite.tasks, rho=1.0)
    with pytest.raises(InputError, match="scale"):
        merge("task_arithmetic", suite.task_vectors, suite.tasks, scale=float("nan"))
