import math
from typing import Any

import pytest
import torch

from bounds import flatness, ntk
from bounds.flatness import loss as loss_module
from bounds.flatness import radius as radius_module
from bounds.scores import cross_entropy
from bounds.types import InputError, Sample, take
from tests import oracles
from tests.tolerances import assert_near


def labelled(name, dtype=torch.float64, n=5) -> tuple[Any, Any, Any]:
    models: Any = {**oracles.MODELS, **oracles.HUGGING_FACE}
    forward, params, inputs = models[name](dtype, n)
    generator = torch.Generator().manual_seed(11)
    return forward, params, Sample(inputs, torch.randint(0, oracles.CLASSES, (n,), generator=generator))


def dense_gradients(forward, params, sample, loss=torch.nn.functional.cross_entropy):
    """∇ℓ_i by an ordinary backward pass per example: [N, P]."""
    rows = []
    for i in range(len(sample)):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        scores = oracles.plain_attention(
            lambda i=i, leaves=leaves: forward(leaves, take(sample.inputs, slice(i, i + 1)))
        )
        loss(scores, sample.labels[i : i + 1]).backward()
        gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values()]
        rows.append(torch.cat([g.flatten() for g in gradients]).double())
    return torch.stack(rows)


def by_block(gradients, params, blocks):
    masks = [oracles.numbers_of(names, params) for names in blocks.values()]
    return torch.stack([gradients[:, mask].square().sum(1) for mask in masks], dim=1)


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_moment_matches_single_backward_passes_and_the_kernel(name, dtype):
    forward, params, sample = labelled(name, dtype)
    blocks = oracles.halves(params)
    expected = by_block(dense_gradients(forward, params, sample), params, blocks)
    got = flatness.gradient_second_moment(forward, params, sample, blocks=blocks, batch_size=2)
    assert_near(got, expected, dtype)
    kernels = ntk.example_blocks(forward, params, sample.inputs, blocks=blocks)
    scores = forward(params, sample.inputs)
    assert_near(flatness.kernel_second_moment(kernels, scores, sample.labels), expected, dtype)


@pytest.mark.parametrize("budget", [1, 3 * 8 * 70, None])
def test_second_moment_within_any_budget_and_vectorised(budget):
    forward, params, sample = labelled("mlp", n=7)
    expected = by_block(dense_gradients(forward, params, sample), params, {"model": list(params)})
    for vectorize in (False, True):
        got = flatness.gradient_second_moment(forward, params, sample, vectorize=vectorize, budget_bytes=budget)
        assert_near(got, expected)


def test_second_moment_of_another_loss():
    forward, params, sample = labelled("mlp")

    def square(scores, labels):
        return (scores - torch.nn.functional.one_hot(labels, scores.shape[1])).square().sum(1)

    expected = dense_gradients(forward, params, sample, square).square().sum(1, keepdim=True)
    assert_near(flatness.gradient_second_moment(forward, params, sample, loss=square), expected)
    kernels = ntk.example_blocks(forward, params, sample.inputs, centred=False)
    scores = forward(params, sample.inputs)
    assert_near(flatness.kernel_second_moment(kernels, scores, sample.labels, loss=square), expected)


@pytest.mark.parametrize("name", oracles.HUGGING_FACE)
def test_hugging_face_gradients(name):
    forward, params, sample = labelled(name)
    gradients = dense_gradients(forward, params, sample)
    got = flatness.gradient_second_moment(forward, params, sample)
    assert_near(got, gradients.square().sum(1, keepdim=True))
    assert flatness.gradient_norm(forward, params, sample).total == pytest.approx(
        float(gradients.mean(0).norm()), rel=1e-8
    )
    assert flatness.sharpness(forward, params, sample, 0.1).increase > 0


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_gradient_norm_matches_the_mean_gradient(name, batch_size):
    forward, params, sample = labelled(name)
    blocks = oracles.halves(params)
    mean = dense_gradients(forward, params, sample).mean(0, keepdim=True)
    got = flatness.gradient_norm(forward, params, sample, blocks=blocks, batch_size=batch_size)
    assert got.total == pytest.approx(float(mean.norm()), rel=1e-8)
    expected = by_block(mean, params, blocks)[0].sqrt()
    assert list(got.blocks) == list(blocks)
    assert_near(torch.tensor(list(got.blocks.values()), dtype=torch.float64), expected)
    losses = torch.nn.functional.cross_entropy(forward(params, sample.inputs), sample.labels)
    assert got.loss == pytest.approx(float(losses), rel=1e-8)


def test_gradient_is_the_slope_of_the_loss():
    forward, params, sample = labelled("vit")
    step = oracles.displacement(params)
    got = flatness.gradient_norm(forward, params, sample)
    h = 1e-6 / got.total

    def loss(s):
        moved = {k: v + s * step[k] for k, v in params.items()}
        return torch.nn.functional.cross_entropy(forward(moved, sample.inputs), sample.labels)

    slope = (loss(h) - loss(-h)) / (2 * h)
    gradient = dense_gradients(forward, params, sample).mean(0)
    assert float(slope) == pytest.approx(float(gradient @ oracles.flatten(step)), rel=1e-4)


class Quadratic:
    """Loss ½(θ - m)^T A (θ - m) as the mean of per-example scores, whose sharpness is known."""

    def __init__(self, size=4):
        root = torch.randn(size, size, dtype=torch.float64)
        self.matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
        self.centre = torch.randn(size, dtype=torch.float64)
        self.params = {"a": torch.zeros(size - 1, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
        self.sample: Any = Sample(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))

    def value(self, theta):
        return (theta - self.centre) @ self.matrix @ (theta - self.centre) / 2

    def forward(self, params, inputs):
        return self.value(torch.cat([params["a"], params["b"]])).expand(len(inputs), 2)

    @staticmethod
    def loss(scores, labels):
        return scores[:, 0]

    def maximum(self, at, rho):
        """Maximum over ‖ε‖ = ρ: ε = (μI - A)^-1 g with μ > λ_max chosen so that ‖ε‖ = ρ."""
        gradient = self.matrix @ (at - self.centre)
        eigenvalues, vectors = torch.linalg.eigh(self.matrix)
        g = vectors.T @ gradient
        low, high = float(eigenvalues[-1]), float(eigenvalues[-1] + gradient.norm() / rho)
        for _ in range(200):
            mu = (low + high) / 2
            low, high = (mu, high) if (g / (mu - eigenvalues)).norm() > rho else (low, mu)
        return float(self.value(at + vectors @ (g / (high - eigenvalues))) - self.value(at))


def test_first_order_sharpness_on_a_quadratic():
    problem = Quadratic()
    gradient = -problem.matrix @ problem.centre
    step = 0.3 * gradient / gradient.norm()
    expected = float(problem.value(step) - problem.value(torch.zeros(4)))
    got = flatness.sharpness(problem.forward, problem.params, problem.sample, 0.3, loss=problem.loss)
    assert got.increase == pytest.approx(expected, rel=1e-10)
    assert got.perturbation_norm == pytest.approx(0.3, rel=1e-12)
    assert got.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert got.perturbed_loss - got.loss == got.increase


def test_ascent_finds_the_maximum_of_a_quadratic():
    problem = Quadratic()
    rho = 2.0
    expected = problem.maximum(torch.zeros(4, dtype=torch.float64), rho)
    options: Any = {"loss": problem.loss}
    first = flatness.sharpness(problem.forward, problem.params, problem.sample, rho, **options)
    best = flatness.sharpness(
        problem.forward, problem.params, problem.sample, rho, method="ascent", steps=300, **options
    )
    assert best.increase == pytest.approx(expected, rel=1e-6)
    assert first.increase < best.increase
    assert best.perturbation_norm <= rho * (1 + 1e-12)
    once = flatness.sharpness(problem.forward, problem.params, problem.sample, rho, method="ascent", steps=1, **options)
    assert once.increase == first.increase


def test_ascent_stays_where_every_step_is_downhill():
    problem = Quadratic()

    def valley(scores, labels):
        return -scores[:, 0]

    params = {"a": problem.centre[:3] + 0.01, "b": problem.centre[3:] + 0.01}
    got = flatness.sharpness(problem.forward, params, problem.sample, 0.5, loss=valley, method="ascent", steps=60)
    assert 0 < got.increase <= -got.loss + 1e-12
    assert got.perturbed_loss == pytest.approx(0.0, abs=1e-3)
    first = flatness.sharpness(problem.forward, params, problem.sample, 0.5, loss=valley)
    assert first.increase < 0  # the first-order step is reported as it is


def test_a_zero_gradient_gives_a_reported_zero_perturbation():
    problem = Quadratic()
    params = {"a": problem.centre[:3], "b": problem.centre[3:]}
    for method in ("sam", "ascent"):
        got = flatness.sharpness(problem.forward, params, problem.sample, 0.5, loss=problem.loss, method=method)
        assert (got.increase, got.perturbation_norm, got.gradient_norm) == (0.0, 0.0, 0.0)


def test_sharpness_in_coefficients_is_that_of_the_restricted_quadratic():
    problem = Quadratic()
    tau = [
        {"a": torch.randn(3, dtype=torch.float64), "b": torch.randn(1, dtype=torch.float64)},
        {"a": torch.randn(3, dtype=torch.float64)},  # a missing name is 0
    ]
    blocks = {"first": ["b"], "second": ["a"]}
    columns = torch.zeros(4, 4, dtype=torch.float64)  # (d, b) = (0, b), (0, a), (1, b), (1, a)
    columns[3, 0], columns[:3, 1], columns[:3, 3] = tau[0]["b"][0], tau[0]["a"], tau[1]["a"]
    gradient = columns.T @ (-problem.matrix @ problem.centre)
    step = columns @ (0.2 * gradient / gradient.norm())
    expected = float(problem.value(step) - problem.value(torch.zeros(4)))
    got = flatness.sharpness(
        problem.forward,
        problem.params,
        problem.sample,
        0.2,
        directions=tau,
        blocks=blocks,
        loss=problem.loss,
    )
    assert got.increase == pytest.approx(expected, rel=1e-10)
    assert got.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert got.perturbation_norm == pytest.approx(0.2)
    more = flatness.sharpness(
        problem.forward,
        problem.params,
        problem.sample,
        0.2,
        directions=tau,
        blocks=blocks,
        loss=problem.loss,
        method="ascent",
    )
    assert more.increase >= got.increase
    assert more.perturbation_norm <= 0.2 * (1 + 1e-12)


def test_sharpness_of_a_network_is_first_order_for_small_radii():
    forward, params, sample = labelled("vit")
    norm = flatness.gradient_norm(forward, params, sample).total
    rho = 1e-6
    got = flatness.sharpness(forward, params, sample, rho)
    assert got.increase == pytest.approx(rho * norm, rel=1e-3)


def test_refusals():
    unknown: Any = "descent"
    forward, params, sample = labelled("mlp")
    high = Sample(sample.inputs, sample.labels + oracles.CLASSES)
    kernels = ntk.example_blocks(forward, params, sample.inputs)
    scores = forward(params, sample.inputs)
    for call, match in [
        (lambda: flatness.gradient_second_moment(forward, params, high), "labels"),
        (lambda: flatness.gradient_second_moment(forward, params, Sample(sample.inputs)), "unlabelled"),
        (lambda: flatness.gradient_second_moment(forward, params, sample.take(slice(0, 0))), "inputs"),
        (lambda: flatness.gradient_second_moment(forward, params, sample, blocks={"x": []}), "partition"),
        (
            lambda: flatness.gradient_second_moment(forward, params, sample, loss=torch.nn.functional.cross_entropy),
            "reduce",
        ),
        (lambda: flatness.kernel_second_moment(kernels[:, 0], scores, sample.labels), "kernel blocks"),
        (lambda: flatness.kernel_second_moment(kernels, scores, sample.labels - 9), "labels"),
        (lambda: flatness.gradient_norm(forward, params, high), "labels"),
        (lambda: flatness.gradient_norm(forward, params, sample, batch_size=0), "batch size"),
        (lambda: flatness.sharpness(forward, params, sample, 0.0), "rho"),
        (lambda: flatness.sharpness(forward, params, sample, math.nan), "rho"),
        (lambda: flatness.sharpness(forward, params, sample, 0.1, method=unknown), "method"),
        (lambda: flatness.sharpness(forward, params, sample, 0.1, method="ascent", steps=0), "steps"),
        (lambda: flatness.sharpness(forward, params, sample, 0.1, directions=[]), "directions"),
        (lambda: flatness.sharpness(forward, params, sample, 0.1, directions=[{"x": scores}]), "direction 0"),
        (lambda: flatness.sharpness(forward, params, sample, 0.1, blocks=oracles.halves(params)), "blocks"),
    ]:
        with pytest.raises(InputError, match=match):
            call()


def test_sharpness_from_a_gradient_that_is_known_takes_no_backward_pass(monkeypatch):
    forward, params, sample = labelled("mlp")
    directions = [oracles.displacement(params, seed) for seed in (1, 2)]
    labels = loss_module.prepare(forward, params, sample)
    at = loss_module.loss_and_gradient(forward, params, sample, labels, cross_entropy, 4)
    expected = [flatness.sharpness(forward, params, sample, 0.1, directions=d) for d in (None, directions)]

    def gone(*arguments):
        raise AssertionError("differentiated again")

    monkeypatch.setattr(radius_module, "loss_and_gradient", gone)
    for one, given in zip(expected, (None, directions), strict=True):
        found = flatness.sharpness(forward, params, sample, 0.1, directions=given, at=at)
        assert found.increase == pytest.approx(one.increase, rel=1e-9)
        assert found.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-9)
