"""Fisher, RegMean and RegMean++ against closed forms and least squares; linear weights found in several networks."""

import numpy as np
import pytest
import torch
from torch import nn

from bounds.autodiff import functional
from bounds.types import InputError, Sample, take
from merging import Task, TaskVectors, merge
from merging.closed_form import regression
from merging.closed_form.statistics import diagonal_fisher, input_products, uses
from merging.suites import toy
from tests.tolerances import assert_near

DTYPE = torch.float64


def task_of(name, forward, inputs, classes=3):
    labels = torch.arange(len(inputs)) % classes
    labelled = Sample(inputs, labels)
    return Task(
        name,
        forward,
        ["a", "b", "c"][:classes],
        train=labelled,
        calibration=Sample(inputs),
        validation=labelled,
        test=labelled,
    )


def linear(params, inputs):
    return inputs @ params["w"].T + params["b"]


def linear_world(tasks=2, examples=30, features=4):
    base = {"w": torch.randn(3, features, dtype=DTYPE), "b": torch.randn(3, dtype=DTYPE)}
    deltas = [{name: torch.randn_like(value) for name, value in base.items()} for _ in range(tasks)]
    names = [f"task{t}" for t in range(tasks)]
    inputs = [torch.randn(examples, features, dtype=DTYPE) * torch.rand(features, dtype=DTYPE) for _ in names]
    return TaskVectors(base, deltas, names), [task_of(n, linear, x) for n, x in zip(names, inputs, strict=True)]


def weighted_mean(values, weights):
    return torch.stack([w * v for v, w in zip(values, weights, strict=True)]).sum(dim=0) / sum(weights)


def test_fisher_of_a_linear_softmax_model():
    """∂ log p_c / ∂W_kj = (1[k=c] - p_k) x_j, so F_kj = mean p_k (1 - p_k) x_j²."""
    tv, tasks = linear_world()
    inputs = tasks[0].calibration.inputs
    assert isinstance(inputs, torch.Tensor)
    p = torch.softmax(linear(tv.expert(0), inputs), dim=1)
    spread = p * (1 - p)
    found = diagonal_fisher(linear, tv.expert(0), inputs)
    assert_near(found["w"], spread.T @ inputs.square() / len(inputs))
    assert_near(found["b"], spread.mean(dim=0))


def test_fisher_in_parts_is_the_same(monkeypatch):
    tv, tasks = linear_world()
    whole = diagonal_fisher(linear, tv.expert(0), tasks[0].calibration.inputs)
    monkeypatch.setenv("MERGEBOUND_MEMORY_BYTES", "1")
    parts = diagonal_fisher(linear, tv.expert(0), tasks[0].calibration.inputs)
    assert_near(parts["w"], whole["w"])


def test_fisher_of_sampled_labels_is_right_on_average():
    """One drawn label per example: the mean over draws tends to the expectation, the deviation is that of its terms."""
    tv, tasks = linear_world()
    inputs = take(tasks[0].calibration.inputs, slice(0, 5))
    expected = diagonal_fisher(linear, tv.expert(0), inputs)["w"]
    generator = torch.Generator().manual_seed(0)
    draws = [diagonal_fisher(linear, tv.expert(0), inputs, generator)["w"] for _ in range(400)]
    found = torch.stack(draws)
    assert bool(((found.mean(dim=0) - expected).abs() < 5 * found.std(dim=0) / 20).all())
    assert float((found.mean(dim=0) - expected).norm() / expected.norm()) < 0.1
    assert float(found[0].sub(found[1]).norm()) > 0
    one = take(inputs, slice(0, 1))
    p = torch.softmax(linear(tv.expert(0), one), dim=1)[0]
    x = torch.as_tensor(one)[0]
    single = diagonal_fisher(linear, tv.expert(0), one, generator)["w"]
    possible = [torch.outer((torch.eye(3).double()[c] - p).square(), x.square()) for c in range(3)]
    assert any(torch.allclose(single, value) for value in possible)


def test_fisher_merge_of_sampled_labels_follows_the_seed():
    tv, tasks = linear_world()
    settings = {"examples": 30, "labels": "sampled"}  # all of them: the seed moves the labels alone
    first, again, other = (merge("fisher", tv, tasks, seed=seed, **settings).merged["w"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    with pytest.raises(InputError, match="labels: expected expected or sampled"):
        merge("fisher", tv, tasks, labels="drawn")


@pytest.mark.parametrize("normalize", [True, False])
def test_fisher_merge_is_the_weighted_mean_of_the_experts(normalize):
    tv, tasks = linear_world()
    weights = []
    for index, task in enumerate(tasks):
        fisher = diagonal_fisher(linear, tv.expert(index), task.calibration.inputs)
        size = torch.cat([f.flatten() for f in fisher.values()]).norm() if normalize else torch.tensor(1.0)
        weights.append({name: value / size for name, value in fisher.items()})
    found = merge("fisher", tv, tasks, examples=30, normalize=normalize, floor=1e-20).merged
    for name, value in found.items():
        experts = [tv.expert(t)[name] for t in range(len(tv))]
        assert_near(value, weighted_mean(experts, [w[name] for w in weights]))


def test_regmean_solves_the_least_squares_problem():
    """With α = 1 and no ridge: min_W Σ_t ‖X_t W_tᵀ - X_t Wᵀ‖², stacked for numpy's lstsq; the bias is averaged."""
    tv, tasks = linear_world(tasks=3)
    inputs = [np.asarray(task.calibration.inputs) for task in tasks]
    targets = [x @ tv.expert(t)["w"].numpy().T for t, x in enumerate(inputs)]
    expected = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0].T
    for method in ("regmean", "regmean_plus_plus"):  # one layer: nothing comes before it
        found = merge(method, tv, tasks, examples=30, off_diagonal=1.0, ridge=1e-12).merged
        assert_near(found["w"], torch.from_numpy(expected))
        assert_near(found["b"], weighted_mean([tv.expert(t)["b"] for t in range(3)], [1, 1, 1]))


def test_regmean_of_a_weight_that_multiplies_untransposed():
    """X P with P [4, 3] is X Wᵀ with W = Pᵀ."""
    tv, tasks = linear_world()
    turned = TaskVectors(
        {"p": tv.base["w"].T.contiguous()}, [{"p": d["w"].T.contiguous()} for d in tv.deltas], tv.names
    )
    products = [task_of(t.name, lambda p, x: x @ p["p"], torch.as_tensor(t.calibration.inputs)) for t in tasks]
    found = merge("regmean", turned, products, examples=30).merged["p"]
    assert_near(found.T, merge("regmean", tv, tasks, examples=30).merged["w"])


def test_regmean_without_off_diagonal_entries_weighs_columns():
    tv, tasks = linear_world()
    moments = [np.square(np.asarray(task.calibration.inputs)).mean(0) for task in tasks]
    found = merge("regmean", tv, tasks, examples=30, off_diagonal=0.0, ridge=1e-12).merged["w"]
    weighted = [tv.expert(t)["w"].numpy() * m for t, m in enumerate(moments)]
    assert_near(found, torch.from_numpy(sum(weighted) / sum(moments)))


def test_along_inputs_that_never_occur_regmean_averages():
    tv, tasks = linear_world()
    blind = []
    for task in tasks:
        inputs = torch.as_tensor(task.calibration.inputs).clone()
        inputs[:, 1] = 0
        blind.append(task_of(task.name, linear, inputs))
    found = merge("regmean", tv, blind, examples=30).merged["w"]
    size = [float(torch.as_tensor(task.calibration.inputs).square().mean()) for task in blind]
    experts = [tv.expert(t)["w"] for t in range(2)]
    assert_near(found[:, 1], weighted_mean(experts, size)[:, 1])
    nothing = [task_of(task.name, linear, torch.zeros(30, 4, dtype=DTYPE)) for task in tasks]
    assert_near(merge("regmean", tv, nothing, examples=30).merged["w"], weighted_mean(experts, [1, 1]))


def test_regmean_plus_plus_takes_inputs_from_the_merge_before():
    """Two layers of the toy world: the second weight is fitted on what the merged first weight gives."""
    suite = toy.build(overlap=1.0)
    generator = torch.Generator().manual_seed(1)
    tv = suite.task_vectors
    noise = [{**d, "second.weight": 0.3 * torch.randn(6, 6, generator=generator, dtype=DTYPE)} for d in tv.deltas]
    tv = TaskVectors(tv.base, noise, tv.names)
    found = merge("regmean_plus_plus", tv, suite.tasks, examples=24, off_diagonal=1.0, ridge=1e-9).merged
    plain = merge("regmean", tv, suite.tasks, examples=24, off_diagonal=1.0, ridge=1e-9).merged
    assert_near(found["first.weight"], plain["first.weight"])
    inputs, targets = [], []
    for index, task in enumerate(suite.tasks):
        hidden = torch.tanh(torch.as_tensor(task.calibration.inputs) @ found["first.weight"].T)
        inputs.append(hidden.numpy())
        targets.append((hidden @ tv.expert(index)["second.weight"].T).numpy())
    expected = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0].T
    torch.testing.assert_close(found["second.weight"], torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain["second.weight"], found["second.weight"], rtol=1e-3)


def test_regmean_plus_plus_ends_its_passes_at_the_weight_they_are_for(monkeypatch):
    """The same merge as from whole passes; also where a weight is used again after others, in whole passes."""

    def chain(params, x):
        for name in ("a", "b", "a", "c"):
            x = torch.tanh(x @ params[name])
        calls.append("whole")
        return x

    calls: list[str] = []
    base = {name: torch.randn(4, 4, dtype=DTYPE) for name in "abc"}
    deltas = [{name: 0.3 * torch.randn(4, 4, dtype=DTYPE) for name in "abc"} for _ in range(2)]
    tv = TaskVectors(base, deltas, ["one", "two"])
    tasks = [task_of(name, chain, torch.randn(300, 4, dtype=DTYPE), 2) for name in tv.names]
    inputs = [task.calibration.inputs for task in tasks]
    assert uses(chain, base, inputs[0]) == {"a": 2, "b": 1, "c": 1}
    calls.clear()
    found = merge("regmean_plus_plus", tv, tasks, examples=300).merged
    assert len(calls) == 2 * 2 + 2 + 2 * 2, "two batches of each task to count, of one for the order, of each for a"
    monkeypatch.setattr(regression, "uses", lambda *_: {})
    whole = merge("regmean_plus_plus", tv, tasks, examples=300).merged
    for name in base:
        assert_near(found[name], whole[name])


class Attending(nn.Module):
    """A layer norm, self-attention, a linear layer, and a projection x @ P, all square but the attention's input."""

    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.linear = nn.Linear(4, 4)
        self.projection = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.ln(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        self.linear_input = torch.tanh(x)
        self.projected = self.linear(self.linear_input)
        return self.projected.mean(dim=1) @ self.projection


def test_linear_weights_are_found_in_attention_modules_and_products():
    module = Attending().double()
    forward, params = functional(module)
    inputs = torch.randn(7, 5, 4, dtype=DTYPE)
    found = input_products(forward, params, inputs)
    assert {name: axis for name, (axis, _) in found.items()} == {
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "linear.weight": 1,
        "projection": 0,
    }
    assert list(found) == ["attention.in_proj_weight", "attention.out_proj.weight", "linear.weight", "projection"]
    forward(params, inputs)
    rows = {
        "attention.in_proj_weight": module.ln(inputs).reshape(35, 4),
        "linear.weight": module.linear_input.reshape(35, 4),
        "projection": module.projected.mean(dim=1),
    }
    for name, x in rows.items():
        assert_near(found[name][1], x.detach().T @ x.detach() / len(x))


def test_products_do_not_depend_on_batches():
    tv, _ = linear_world()
    inputs = torch.randn(600, 4, dtype=DTYPE)  # more than one batch of 256
    assert_near(input_products(linear, tv.base, inputs)["w"][1], inputs.T @ inputs / 600)


def test_networks_without_linear_weights_are_refused():
    tv, tasks = linear_world()
    hidden = [task_of(task.name, lambda p, x: x * p["b"].sum(), torch.randn(30, 3, dtype=DTYPE)) for task in tasks]
    with pytest.raises(InputError, match="expected linear weights among its parameters"):
        merge("regmean", tv, hidden, examples=30)
    both = [task_of(task.name, lambda p, x: x @ p["s"] @ p["s"].T, torch.randn(30, 3, dtype=DTYPE)) for task in tasks]
    square = TaskVectors({"s": torch.eye(3, dtype=DTYPE)}, [{"s": torch.randn(3, 3, dtype=DTYPE)}] * 2, tv.names)
    with pytest.raises(InputError, match="weight s: expected use as W or as Wᵀ"):
        merge("regmean", square, both, examples=30)


def test_too_few_examples_and_other_tasks_are_refused():
    tv, tasks = linear_world()
    for method in ("fisher", "regmean", "regmean_plus_plus"):
        with pytest.raises(InputError, match="expected at least examples = 31"):
            merge(method, tv, tasks, examples=31)
        with pytest.raises(InputError, match="tasks: expected"):
            merge(method, tv, tasks[::-1], examples=30)


def test_fisher_of_sequences_is_right_on_average_over_drawn_labels():
    """The mean over counted positions of E_c (∂ log p_c)², written out class by class, with a backward pass each."""
    generator = torch.Generator().manual_seed(0)
    theta = {"w": torch.randn(3, 2, generator=generator, dtype=DTYPE)}
    x = torch.randn(4, 5, 2, generator=generator, dtype=DTYPE)
    counted = torch.arange(5) < torch.tensor([[5], [2], [3], [1]])

    def forward(params, inputs):
        return (inputs.cumsum(dim=1) @ params["w"].T).tanh()

    exact = torch.zeros(3, 2, dtype=DTYPE)
    for example, place in counted.nonzero().tolist():
        for label in range(3):
            leaf = {"w": theta["w"].clone().requires_grad_()}
            log_p = forward(leaf, x[example : example + 1])[0, place].log_softmax(0)
            (gradient,) = torch.autograd.grad(log_p[label], [leaf["w"]])
            exact += log_p[label].exp().detach() * gradient.square() / counted.sum()
    draws = torch.stack([diagonal_fisher(forward, theta, x, generator, counted)["w"] for _ in range(400)])
    error = draws.std(dim=0) / 400**0.5
    assert bool(((draws.mean(dim=0) - exact).abs() < 4 * error).all())
    every = torch.stack(
        [diagonal_fisher(forward, theta, x, generator, torch.ones_like(counted))["w"] for _ in range(400)]
    )
    assert bool(((every.mean(dim=0) - exact).abs() > 4 * error).any()), "masked positions would be seen"
    with pytest.raises(InputError, match="Fisher information of sequences: expected drawn labels"):
        diagonal_fisher(forward, theta, x, None, counted)
