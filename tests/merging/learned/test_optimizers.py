"""Optimisers of λ and averages of λ over the steps."""

from dataclasses import replace

import pytest
import torch

from bounds.types import InputError
from merging import learned
from merging.learned import LearnedSettings
from tests.merging.learned.test_loop import quadratic_problem

EXPECTED = {
    "adam": lambda p: torch.optim.Adam([p], lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.05, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.1),
}


def path_of(**settings):
    problem, a, b = quadratic_problem("none")
    problem = replace(problem, settings=replace(problem.settings, learning_rate=0.05, **settings))
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


def test_averaging_does_not_change_the_path():
    assert torch.equal(path_of(steps=6)[0], path_of(steps=6, average="swa")[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "lion"}, "optimizer: expected adam or"),
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
