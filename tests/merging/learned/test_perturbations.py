"""Rows of perturbations: the gradient they descend on a quadratic, the passes they take, other libraries' steps."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from bounds.types import InputError
from merging import learned
from merging.draws import task_generators
from merging.learned import LearnedSettings
from merging.learned.objectives import teacher_kl
from merging.learned.perturbations import PERTURBATIONS
from merging.suites import toy
from merging.task_vectors import merged
from tests.merging.learned.test_loop import RHO, gradient, quadratic_problem

STEPS = 7


def with_settings(problem, **changes):
    return replace(problem, settings=replace(problem.settings, **changes))


def unit(vector):
    return vector / vector.norm()


def orthogonal(vector, to):
    return vector - unit(to) * (unit(to) @ vector)


class Reference:
    """The published updates, written down once more on the gradient of the quadratic, λ a vector."""

    def __init__(self, a, b, every):
        self.gradient = lambda x: a @ x - b
        self.every, self.count, self.kept = every, 0, None

    def none(self, x):
        return self.gradient(x)

    def momentum(self, x):
        there = self.gradient(x if self.kept is None else x - RHO * unit(self.kept))
        self.kept = there if self.kept is None else 0.9 * self.kept + there
        return there

    def look(self, x):
        g = self.gradient(x)
        self.count += 1
        if self.count % self.every != 1:
            return g + 0.7 * g.norm() * unit(self.kept)
        there = self.gradient(x + RHO * unit(g))
        self.kept = orthogonal(there, g)
        return there

    def friendly(self, x):
        g = self.gradient(x)
        direction = g if self.kept is None else g - self.kept
        self.kept = g if self.kept is None else 0.9 * self.kept + 0.1 * g
        return self.gradient(x + RHO * unit(direction))

    def gap(self, x):
        g = self.gradient(x)
        there = self.gradient(x + RHO * unit(g))
        return there - 0.4 * orthogonal(g, there)


@pytest.mark.parametrize("name", ["none", "momentum", "look", "friendly", "gap"])
def test_on_a_quadratic_every_step_descends_the_published_gradient(name):
    problem, a, b = quadratic_problem(name)
    problem = with_settings(problem, every=3)
    state, reference = learned.init(problem), Reference(a, b, 3)
    for _ in range(STEPS):
        here = state.coefficients.detach().flatten().clone()
        learned.update(problem, state)
        assert torch.allclose(gradient(state.coefficients).flatten(), getattr(reference, name)(here), atol=1e-11)


def test_the_gradient_norm_penalty_is_exact_on_a_quadratic():
    problem, a, b = quadratic_problem("gradient-norm")
    state = learned.init(with_settings(problem, penalty=0.2))
    leaf = state.coefficients.detach().flatten().clone().requires_grad_()
    (leaf @ a @ leaf / 2 - b @ leaf + 0.2 * (a @ leaf - b).norm()).backward()
    learned.update(with_settings(problem, penalty=0.2), state)
    assert torch.allclose(gradient(state.coefficients).flatten(), gradient(leaf), atol=1e-11)


def test_noise_in_coefficients_is_the_tasks_generators_times_rho():
    problem, a, b = quadratic_problem("random")
    state = learned.init(problem)
    start = state.coefficients.detach().flatten().clone()
    learned.update(problem, state)
    own = task_generators([f"{name}, step 0, noise" for name in ("a", "b")], problem.settings.seed + 1)
    noise = RHO * torch.cat([torch.randn(2, generator=generator, dtype=torch.float64) for generator in own])
    assert torch.allclose(gradient(state.coefficients).flatten(), a @ (start + noise) - b, atol=1e-12)
    assert state.history["perturbation_norm"] == [pytest.approx(float(noise.norm()))]


def test_noise_in_coefficients_has_mean_zero_and_deviation_rho():
    problem, a, b = quadratic_problem("random")
    state = learned.init(problem)
    start = state.coefficients.detach().flatten().clone()
    draws = []
    for _ in range(2000):
        with torch.no_grad():
            state.coefficients.copy_(start.view(2, 2))
        learned.update(problem, state)
        draws.append(torch.linalg.solve(a, gradient(state.coefficients).flatten() + b) - start)
    noise = torch.stack(draws)
    assert float(noise.mean(dim=0).abs().max()) < 4 * RHO / 2000**0.5
    assert float(noise.std()) == pytest.approx(RHO, rel=4 / (2 * 8000) ** 0.5)


@pytest.mark.parametrize("granularity", ["tensor", "task"])
def test_noise_in_weights_is_relative_to_the_blocks_of_the_base(granularity):
    problem, _, _ = quadratic_problem("random-weights")
    base = {"u": problem.task_vectors.base["u"], "v": 10 * problem.task_vectors.base["v"]}
    blocks = {"u": ("u",), "v": ("v",)} if granularity == "tensor" else {"model": ("u", "v")}
    vectors = replace(problem.task_vectors, base=base)
    problem = replace(problem, task_vectors=vectors, blocks=blocks)
    state = learned.init(problem)
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    leaf = state.coefficients.detach().clone().requires_grad_()
    learned.update(problem, state)
    squares = {name: float(value.square().mean()) for name, value in base.items()}
    theta = merged(vectors, leaf, blocks)
    for name in base:
        sigma = RHO * (squares[name] if granularity == "tensor" else sum(squares.values()) / 2) ** 0.5
        theta[name] = theta[name] + sigma * torch.randn(2, 3, generator=generator, dtype=torch.float64)
    data = zip(problem.forwards, problem.inputs, problem.teacher_scores, strict=True)
    torch.stack([problem.objective(f(theta, x), s, 1.0) for f, x, s in data]).mean().backward()
    assert torch.allclose(gradient(state.coefficients), gradient(leaf), atol=1e-11)


def gauss_newton(problem, leaf, temperature):
    """Dense: the Jacobian of every score in λ, and Jᵀ(diag p - ppᵀ)J/u² [TL, TL]."""
    total = torch.zeros((), dtype=torch.float64)
    for forward, inputs in zip(problem.forwards, problem.inputs, strict=True):

        def scores(x, forward=forward, inputs=inputs):
            return forward(merged(problem.task_vectors, x, problem.blocks), inputs)

        jacobian = torch.autograd.functional.jacobian(scores, leaf, create_graph=True).flatten(start_dim=2)
        p = (scores(leaf) / temperature).softmax(dim=1)
        h = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / temperature**2
        total = total + torch.einsum("ncd,nce,nek->ndk", jacobian, h, jacobian).mean(dim=0)
    return total / len(problem.forwards)


def hand_out(signs, monkeypatch):
    """Have the next draws of signs be these, a row [2] for each of the two tasks."""
    rows = iter(torch.tensor(signs).view(2, 2))
    monkeypatch.setattr(torch, "randint", lambda *a, **k: next(rows))


@pytest.mark.parametrize("signs", [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 0)])
def test_with_one_sign_vector_the_trace_penalty_is_the_gradient_of_its_quadratic_form(signs, monkeypatch):
    problem, _, _ = quadratic_problem("ggn-trace")
    problem = with_settings(replace(problem, objective=teacher_kl), penalty=0.3)
    state = learned.init(problem)
    leaf = state.coefficients.detach().clone().requires_grad_()
    z = 2.0 * torch.tensor(signs, dtype=torch.float64) - 1
    plain = learned.evaluate(problem, leaf, [torch.arange(5)] * 2).coefficients
    (expected,) = torch.autograd.grad(z @ gauss_newton(problem, leaf, 1.0) @ z, leaf)
    hand_out(signs, monkeypatch)
    learned.update(problem, state)
    assert torch.allclose(gradient(state.coefficients) - plain, 0.3 * expected, atol=1e-9)


def mean_over_signs(problem, monkeypatch):
    """The row's gradient averaged over all 16 sign vectors: Hutchinson's estimator without its noise."""
    gradients: list[torch.Tensor] = []
    for signs in itertools.product((0, 1), repeat=4):
        hand_out(signs, monkeypatch)
        state = learned.init(problem)
        learned.update(problem, state)
        gradients.append(gradient(state.coefficients))
    monkeypatch.undo()
    return torch.stack(gradients).mean(dim=0)


def test_the_trace_penalty_over_all_signs_is_the_gradient_of_the_exact_trace(monkeypatch):
    problem, _, _ = quadratic_problem("ggn-trace")
    problem = with_settings(problem, penalty=0.3, temperature=2.0)
    problem = replace(problem, objective=teacher_kl)
    leaf = learned.init(problem).coefficients.detach().clone().requires_grad_()
    plain = learned.evaluate(problem, leaf, [torch.arange(5)] * 2).coefficients
    (expected,) = torch.autograd.grad(gauss_newton(problem, leaf, 2.0).trace(), leaf)
    assert float(expected.norm()) > 1e-3
    assert torch.allclose(mean_over_signs(problem, monkeypatch) - plain, 0.3 * expected, atol=1e-9)


def test_the_trace_penalty_of_a_curved_network_is_right_to_second_order_of_the_radius(monkeypatch):
    problem, _, _ = quadratic_problem("ggn-trace")

    def curved(params, x):
        return torch.tanh(x[:, :3] @ params["u"].T) @ params["v"][:, :2] + x[:, 3:] @ params["v"].T

    problem = with_settings(replace(problem, objective=teacher_kl, forwards=[curved] * 2), penalty=1.0)
    leaf = learned.init(problem).coefficients.detach().clone().requires_grad_()
    plain = learned.evaluate(problem, leaf, [torch.arange(5)] * 2).coefficients
    (expected,) = torch.autograd.grad(gauss_newton(problem, leaf, 1.0).trace(), leaf)
    errors = []
    for rho in (0.08, 0.04):
        found = mean_over_signs(with_settings(problem, rho=rho), monkeypatch) - plain
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


PASSES = {"none": 1, "momentum": 1, "random": 1, "random-weights": 1, "ggn-trace": 4}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_passes_per_step_are_what_the_table_says(name):
    problem, _, _ = quadratic_problem(name)
    calls = []

    def counted(forward):
        return lambda params, x: calls.append(1) or forward(params, x)

    problem = with_settings(replace(problem, forwards=[counted(f) for f in problem.forwards]), every=3)
    state = learned.init(problem)
    for _ in range(6):
        learned.update(problem, state)
    taken = len(calls) / 2 / 6
    said = PERTURBATIONS[name].passes
    assert taken == pytest.approx(1 + 1 / 3 if said == "1 + 1/k" else float(said))


def trajectory(name, **settings):
    problem, a, b = quadratic_problem(name)
    problem = with_settings(problem, optimizer="sgd", learning_rate=0.01, **settings)
    state, path = learned.init(problem), []
    for _ in range(STEPS):
        learned.update(problem, state)
        path.append(state.coefficients.detach().flatten().clone())
    return torch.stack(path), a, b


def library_trajectory(make, a, b, model=None):
    """Steps of another library's optimiser on the same quadratic, SGD with momentum 0.9 below it."""
    leaf = torch.nn.Parameter(torch.full((4,), 0.4, dtype=torch.float64))
    optimizer, path = make(leaf), []

    def closure(*_):
        leaf.grad = a @ leaf.detach() - b
        return torch.zeros(()), torch.zeros(())

    for _ in range(STEPS):
        closure()
        optimizer.step(closure)
        path.append(leaf.detach().clone())
    return torch.stack(path)


SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}
LIBRARY = {
    "coefficients": (lambda po, p: po.SAM([p], torch.optim.SGD, rho=RHO, **SGD), {}),
    "coefficients-adaptive": (lambda po, p: po.SAM([p], torch.optim.SGD, rho=RHO, adaptive=True, **SGD), {}),
    "look": (lambda po, p: po.LookSAM([p], torch.optim.SGD, rho=RHO, k=3, **SGD), {"every": 3}),
    "friendly": (lambda po, p: po.FriendlySAM([p], torch.optim.SGD, rho=RHO, **SGD), {}),
    "gap": (
        lambda po, p: po.GSAM(
            [p], torch.optim.SGD([p], **SGD), torch.nn.Module(), po.ProportionScheduler(_Constant(), 1, 1, RHO, RHO)
        ),
        {},
    ),
    "gradient-norm": (
        lambda po, p: po.WSAM(torch.nn.Module(), [p], torch.optim.SGD, rho=RHO, gamma=0.3, decouple=False, **SGD),
        {"penalty": RHO * 0.3 / 0.7},
    ),
}


class _Constant:
    """A schedule of the learning rate that never moves."""

    def __init__(self):
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self.last_lr = [1.0]

    def step(self):
        return 1.0


@pytest.mark.parametrize("name", LIBRARY)
def test_trajectories_agree_with_pytorch_optimizer(name):
    library = pytest.importorskip("pytorch_optimizer")
    make, settings = LIBRARY[name]
    path, a, b = trajectory(name, **settings)
    plain, _, _ = trajectory("none")
    other = library_trajectory(lambda p: make(library, p), a, b)
    assert torch.allclose(path, other, atol=1e-7)
    assert float((path - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_what_a_row_keeps_is_tensors_and_a_run_resumed_from_them_goes_on_unchanged(name):
    problem, _, _ = quadratic_problem(name)
    problem = with_settings(problem, every=3, optimizer="sgd", learning_rate=0.01)
    whole = learned.init(problem)
    for _ in range(8):
        learned.update(problem, whole)
    first = learned.init(problem)
    for _ in range(4):
        learned.update(problem, first)
    second = learned.init(problem)
    assert all(isinstance(value, torch.Tensor) for value in first.memory.values())
    with torch.no_grad():
        second.coefficients.copy_(first.coefficients)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.generator.set_state(first.generator.get_state())
    second.memory.update({key: value.clone() for key, value in first.memory.items()})
    second.history.update({key: list(values) for key, values in first.history.items()})
    for _ in range(4):
        learned.update(problem, second)
    assert torch.equal(whole.coefficients, second.coefficients)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_row_learns_on_a_network_at_zero_and_elsewhere(name):
    suite = toy.build(overlap=0.5)
    for init in (0.0, None):
        settings = LearnedSettings(perturbation=name, steps=30, examples=16, batch=16, init=init)
        problem = learned.prepare(suite.task_vectors, suite.tasks, settings)
        state, everything = learned.init(problem), [torch.arange(16)] * 3
        before = learned.evaluate(problem, state.coefficients, everything).losses.mean()
        for _ in range(30):
            learned.update(problem, state)
        assert learned.evaluate(problem, state.coefficients, everything).losses.mean() < 0.9 * before


@pytest.mark.parametrize("name", ["gradient-norm", "ggn-trace"])
def test_a_finite_difference_of_radius_0_is_refused(name):
    with pytest.raises(InputError, match=f"rho: expected a positive radius for {name}"):
        LearnedSettings(perturbation=name, rho=0)
