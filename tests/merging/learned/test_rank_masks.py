"""AdaRank: components, selections, and the row against the straight-through estimator written with autograd."""

from typing import Any

import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, learned, merge
from merging.learned.rank_masks import START, TEMPERATURE, Components, SelectedVectors, centred
from merging.suites import toy
from tests.tolerances import assert_near


def low_rank(tasks=2, rank=2, rows=5, columns=4):
    return torch.randn(tasks, rows, rank).double() @ torch.randn(tasks, rank, columns).double()


def vectors(matrix, bias):
    deltas = [{"w": matrix[t], "b": bias[t]} for t in range(len(matrix))]
    base = {name: torch.randn_like(value) for name, value in deltas[0].items()}
    return TaskVectors(base, deltas, [f"task{t}" for t in range(len(matrix))])


def test_components_are_as_many_as_the_largest_rank_and_add_up():
    deltas = torch.cat([low_rank(1, 1), low_rank(1, 3)])
    parts = Components.of(deltas)
    assert parts.sigma.shape == (2, 3)
    assert float(parts.sigma[0, 1:].max()) < 1e-12
    assert_near(parts.of_selected(torch.ones(2, 3)), deltas)
    selected = torch.tensor([[True, True, False], [False, True, True]])
    expected = deltas[1] - parts.sigma[1, 0] * torch.outer(parts.u[1, :, 0], parts.vt[1, 0])
    found = parts.of_selected(selected)
    assert_near(found[1], expected)
    assert_near(found[0], deltas[0])


def test_the_slopes_of_components_are_autograds():
    parts, gradient = Components.of(low_rank()), torch.randn(5, 4, dtype=torch.float64)
    shares = torch.ones_like(parts.sigma, requires_grad=True)
    (expected,) = torch.autograd.grad((parts.of_selected(shares) * gradient).sum(), [shares])
    assert_near(parts.slopes(gradient), expected)


def test_selecting_writes_the_task_vectors_anew_and_only_those_of_matrices():
    tv = vectors(low_rank(), torch.randn(2, 5, dtype=torch.float64))
    selected = SelectedVectors(tv)
    whole = selected.start(1.0)
    selected.select(whole)
    assert all(torch.equal(selected.vectors.stacked[name], value) for name, value in tv.stacked.items())
    assert (set(whole), selected.share) == ({"w"}, 1.0)
    numbers = {"w": torch.tensor([[-0.1, 0.1], [0.0, -1.0]], dtype=torch.float64)}
    selected.select(numbers)
    parts = selected.components["w"]
    kept = parts.sigma[0, 1] * torch.outer(parts.u[0, :, 1], parts.vt[0, 1])
    assert_near(selected.vectors.deltas[0]["w"], kept)
    assert float(selected.vectors.deltas[1]["w"].abs().max()) == 0.0
    assert (torch.equal(selected.vectors.stacked["b"], tv.stacked["b"]), selected.share) == (True, 0.25)
    selected.select(whole)
    assert_near(selected.vectors.stacked["w"], tv.stacked["w"])
    assert not torch.equal(tv.stacked["w"][1], numbers["w"]), "the given task vectors stay as they are"


def test_the_largest_components_are_in_at_the_start():
    deltas = torch.randn(2, 5, 4, dtype=torch.float64)
    start = SelectedVectors(vectors(deltas, torch.zeros(2, 5, dtype=torch.float64))).start(0.5)["w"]
    assert start.tolist() == [[START, START, -START, -START]] * 2


def by_autograd(suite, inputs, settings, shared):
    """AdaRank by its definition: b = [sigmoid(x/10) > 1/2] going forward, sigmoid(x/10) going back; Adam on λ and x.

    ``shared`` says whether a task has one coefficient for all tensors. Returns θ, and how many components are in.
    """
    base, deltas = suite.task_vectors.base, suite.task_vectors.deltas
    svds = [{n: torch.linalg.svd(d, full_matrices=False) for n, d in delta.items()} for delta in deltas]
    kept = {n: round(settings["kept"] * min(v.shape)) for n, v in base.items()}
    x = [{n: torch.full((min(v.shape),), 0.1, dtype=torch.float64) for n, v in base.items()} for _ in deltas]
    for numbers in x:
        for name, value in numbers.items():
            value[kept[name] :] = -0.1
            value.requires_grad_()
    lam = torch.full((len(deltas), 1 if shared else len(base)), settings["init"], dtype=torch.float64)
    lam.requires_grad_()
    adams = [
        torch.optim.Adam([lam], lr=settings["learning_rate"]),
        torch.optim.Adam([v for numbers in x for v in numbers.values()], lr=settings["mask_learning_rate"]),
    ]

    def theta():
        result = dict(base)
        for t in range(len(deltas)):
            for i, name in enumerate(base):
                u, s, vt = svds[t][name]
                soft = torch.sigmoid(x[t][name] / 10)
                hard = soft + ((soft > 0.5).double() - soft).detach()
                result[name] = result[name] + lam[t, 0 if shared else i] * (u * (hard * s)) @ vt
        return result

    for _ in range(settings["steps"]):
        merged, loss = theta(), torch.zeros((), dtype=torch.float64)
        for task, examples in zip(suite.tasks, inputs, strict=True):
            q = task.forward(merged, examples).log_softmax(dim=1)
            loss = loss - (q.exp() * q).sum(dim=1).mean() / len(suite.tasks)
        for adam in adams:
            adam.zero_grad()
        loss.backward()
        for adam in adams:
            adam.step()
    within = sum(int((v > 0).sum()) for numbers in x for v in numbers.values())
    return {name: value.detach() for name, value in theta().items()}, within


def moving(overlap=0.5):
    """The toy world with noise on both layers of all experts: every matrix has six components to choose from."""
    suite = toy.build(overlap=overlap)
    generator = torch.Generator().manual_seed(0)
    for delta in suite.task_vectors.deltas:
        for value in delta.values():  # views of the task vectors themselves
            value.add_(0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return suite


@pytest.mark.parametrize("granularity", ["tensor", "task"])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_adarank_is_the_straight_through_estimator(kept, granularity):
    suite = moving()
    settings: dict[str, Any] = {
        "steps": 9,
        "kept": kept,
        "init": 0.4,
        "learning_rate": 0.02,
        "mask_learning_rate": 0.03,
    }
    data: dict[str, Any] = {"examples": 16, "batch": 16, "granularity": granularity}
    made = merge("adarank", suite.task_vectors, suite.tasks, **settings, **data)
    inputs = learned.prepare(suite.task_vectors, suite.tasks, learned.LearnedSettings(**data)).inputs
    expected, within = by_autograd(suite, inputs, settings, granularity == "task")
    for name, value in expected.items():
        assert_near(made.merged[name], value)
    start = 36 if kept == 1.0 else 18
    assert within != start, "components have changed sides"
    assert made.history["kept_components"] == [pytest.approx(within / 36)]
    assert made.coefficients is None
    frozen = merge("adarank", suite.task_vectors, suite.tasks, **{**settings, "mask_learning_rate": 1e-9}, **data)
    assert frozen.history["kept_components"] == [pytest.approx(start / 36)]


def test_with_all_components_in_it_is_adamerging():
    suite = moving()
    settings: dict[str, Any] = {"steps": 4, "examples": 16, "batch": 8}
    for granularity in ("tensor", "block"):
        found = merge("adarank", suite, mask_learning_rate=1e-9, granularity=granularity, **settings).merged
        expected = merge("adamerging", suite, granularity=granularity, **settings).merged
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_centred_experts_are_seen_from_their_average():
    suite = moving()
    tv = suite.task_vectors
    seen = centred(tv)
    for t in range(len(tv)):
        for name, value in tv.expert(t).items():
            assert_near(seen.expert(t)[name], value)
    assert_near(seen.stacked["first.weight"].sum(dim=0) + 1, torch.ones_like(seen.base["first.weight"]))
    settings: dict[str, Any] = {"steps": 5, "examples": 16, "kept": 0.5, "init": 1.0, "mask_learning_rate": 0.05}
    found = merge("adarank", suite, centred=True, **settings).merged
    expected = merge("adarank", seen, suite.tasks, **settings).merged
    for name, value in expected.items():
        assert_near(found[name], value)
    nothing = merge("adarank", suite, centred=True, **{**settings, "kept": 0.0, "mask_learning_rate": 1e-9}).merged
    assert_near(nothing["first.weight"], merge("average", suite).merged["first.weight"])


def test_it_goes_with_perturbations_whose_point_its_masks_follow():
    suite = moving()
    settings: dict[str, Any] = {"steps": 6, "examples": 16, "kept": 0.5, "mask_learning_rate": 0.05}
    plain = merge("adarank", suite, **settings).merged
    for perturbation in ("coefficients", "weights"):
        other = merge("adarank", suite, perturbation=perturbation, rho=0.3, **settings).merged
        assert not torch.allclose(other["first.weight"], plain["first.weight"], atol=1e-6)
    assert TEMPERATURE == 10


def test_settings_out_of_range_are_refused():
    suite = toy.build()
    refused: list[dict[str, Any]] = [{"kept": 1.5}, {"kept": -0.1}, {"mask_learning_rate": 0.0}]
    for setting in refused:
        with pytest.raises(InputError, match=f"{next(iter(setting))}: expected"):
            merge("adarank", suite, **setting)
