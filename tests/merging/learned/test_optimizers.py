"""Optimisers of λ and averages of λ over the steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from bounds.types import InputError
from merging import learned, merge
from merging.learned import LearnedSettings, optimizers
from merging.suites import toy
from tests.merging.learned.test_loop import quadratic_problem

EXPECTED = {
    "adam": lambda p: torch.optim.Adam([p], lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.05, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.1),
}


def path_of(**settings):
    problem, a, b = quadratic_problem("none")
    problem = replace(problem, settings=replace(problem.settings, **{"learning_rate": 0.05, **settings}))
    state, path = learned.init(problem), []
    for _ in range(problem.settings.steps):
        learned.update(problem, state)
        path.append(state.coefficients.detach().clone())
    return torch.stack(path), state, a, b


@pytest.mark.parametrize("name", EXPECTED)
def test_optimisers_take_torchs_steps(name):
    path, _, a, b = path_of(optimizer=name, weight_decay=0.1, steps=5)
    leaf = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    optimizer = EXPECTED[name](leaf)
    for found in path:
        leaf.grad = a @ leaf.detach() - b
        optimizer.step()
        assert torch.allclose(found.flatten(), leaf.detach(), atol=1e-12)


def frank_wolfe_over_models(suite, inputs, steps, rate, layerwise):
    """FW-Merging in whole models: the model with the least ⟨∇, θ⟩, tensor by tensor or as one, and a step towards it.

    The models are the experts and the merge that it starts from, Σ_t 0.3 τ_t.
    """
    tv = suite.task_vectors
    start = {name: value + 0.3 * sum(delta[name] for delta in tv.deltas) for name, value in tv.base.items()}
    models, theta = [*(tv.expert(t) for t in range(len(tv))), start], dict(start)
    chosen = []
    for k in range(steps):
        leaf = {name: value.clone().requires_grad_() for name, value in theta.items()}
        losses = [
            torch.nn.functional.cross_entropy(task.forward(leaf, x), task.forward(tv.expert(t), x).argmax(dim=1))
            for t, (task, x) in enumerate(zip(suite.tasks, inputs, strict=True))
        ]
        slopes = dict(zip(leaf, torch.autograd.grad(torch.stack(losses).mean(), list(leaf.values())), strict=True))
        products = {name: [float((slopes[name] * model[name]).sum()) for model in models] for name in theta}
        summed = np.sum(list(products.values()), axis=0)
        best = {name: int(np.argmin(products[name] if layerwise else summed)) for name in theta}
        step = min(1.0, 2 * rate / (k + 2))
        theta = {name: (1 - step) * value + step * models[best[name]][name] for name, value in theta.items()}
        chosen.append(tuple(best.values()))
    return theta, chosen


@pytest.mark.parametrize(("granularity", "rate"), [("tensor", 0.3), ("task", 0.3), ("tensor", 1.0)])
def test_frank_wolfe_goes_from_model_to_model(granularity, rate):
    suite = toy.build(overlap=0.6, seed=1)
    generator = torch.Generator().manual_seed(0)
    for delta in suite.task_vectors.deltas:  # views of the task vectors: let the second layers differ, too
        delta["second.weight"].copy_(0.5 * torch.randn(6, 6, generator=generator, dtype=torch.float64))
    data: dict[str, Any] = {"examples": 20, "batch": 20}
    made = merge("frank_wolfe", suite, granularity=granularity, learning_rate=rate, steps=8, **data)
    inputs = learned.prepare(suite.task_vectors, suite.tasks, LearnedSettings(**data)).inputs
    expected, chosen = frank_wolfe_over_models(suite, inputs, 8, rate, granularity == "tensor")
    assert len(set(chosen)) > 1
    assert all(torch.allclose(made.merged[name], value, atol=1e-10) for name, value in expected.items())
    other = frank_wolfe_over_models(suite, inputs, 8, rate, granularity != "tensor")[0]
    assert not all(torch.allclose(made.merged[name], value, atol=1e-3) for name, value in other.items())


def test_frank_wolfe_finds_the_minimum_over_the_hull_of_the_experts_and_the_start():
    path, _, a, b = path_of(optimizer="frank-wolfe", steps=300, learning_rate=1.0)
    corners = np.array([[1, 0], [0, 1], [0.4, 0.4]])
    quadratic, slope = a.numpy(), b.numpy()

    def loss(shares):
        lam = (shares.reshape(2, 3) @ corners).T.flatten()  # λ [T, L] from the shares of each column's corners
        return lam @ quadratic @ lam / 2 - slope @ lam

    sums = [{"type": "eq", "fun": lambda shares, c=c: shares.reshape(2, 3)[c].sum() - 1} for c in range(2)]
    best = scipy.optimize.minimize(loss, np.full(6, 1 / 3), bounds=[(0, 1)] * 6, constraints=sums, tol=1e-12)
    lam = path[-1].numpy().flatten()
    reached, first = (x @ quadratic @ x / 2 - slope @ x for x in (lam, np.full(4, 0.4)))
    assert best.fun - 1e-9 <= reached <= best.fun + 1e-2 * (first - best.fun)
    assert (path.sum(dim=1) <= 1 + 1e-9).all()
    assert (path >= 0).all()


def test_frank_wolfe_takes_the_mean_of_equal_corners_and_decays_towards_zero():
    leaf = torch.full((3, 2), 0.2, requires_grad=True)
    optimizer = optimizers.FrankWolfe(leaf, 0.5, 0.0)
    leaf.grad = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, -1.0]])
    optimizer.step()
    # column 0: all four corners are equal; column 1: the second and third experts; half of the way
    assert leaf.tolist() == [pytest.approx([0.25, 0.1]), pytest.approx([0.25, 0.35]), pytest.approx([0.25, 0.35])]
    leaf = torch.tensor([[0.9], [0.1]], requires_grad=True)
    optimizer, leaf.grad = optimizers.FrankWolfe(leaf, 0.5, 1.0), torch.zeros(2, 1)
    optimizer.step()  # decay alone, a gradient of λ itself: the second expert is the nearest to 0
    assert leaf.tolist() == [pytest.approx([0.45]), pytest.approx([0.55])]


def test_without_an_average_the_last_coefficients_are_merged():
    path, state, _, _ = path_of(steps=5)
    assert torch.equal(learned.learned(state), path[-1])


def test_the_exponential_average_is_its_recursion_from_the_first_coefficients():
    path, state, _, _ = path_of(average="ema", average_decay=0.7, steps=5)
    weights = torch.tensor([0.7**4, 0.3 * 0.7**3, 0.3 * 0.7**2, 0.3 * 0.7, 0.3], dtype=torch.float64)
    assert torch.allclose(learned.learned(state), torch.einsum("s,stl->tl", weights, path), atol=1e-12)


@pytest.mark.parametrize(("steps", "left_out"), [(7, 3), (8, 4), (1, 0)])
def test_stochastic_weight_averaging_is_the_mean_of_the_second_half(steps, left_out):
    path, state, _, _ = path_of(average="swa", steps=steps)
    assert torch.allclose(learned.learned(state), path[left_out:].mean(dim=0), atol=1e-12)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_cosine_schedule_is_torchs(name):
    path, _, a, b = path_of(optimizer=name, weight_decay=0.1, steps=7, schedule="cosine")
    leaf = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    optimizer = EXPECTED[name](leaf)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for found in path:
        leaf.grad = a @ leaf.detach() - b
        optimizer.step()
        scheduler.step()
        assert torch.allclose(found.flatten(), leaf.detach(), atol=1e-12)


def test_averaging_does_not_change_the_path():
    assert torch.equal(path_of(steps=6)[0], path_of(steps=6, average="swa")[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "lion"}, "optimizer: expected adam or"),
        ({"schedule": "linear"}, "schedule: expected constant or cosine"),
        ({"average": "mean"}, "average: expected none or"),
        ({"average_decay": 1.0}, "average_decay"),
        ({"every": 0}, "every"),
        ({"cached": -1}, "cached"),
        ({"examples": 0}, "examples"),
        ({"penalty": float("inf")}, "penalty"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        LearnedSettings(**setting)
