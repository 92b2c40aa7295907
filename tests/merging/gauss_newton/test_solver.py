"""Gauss-Newton on λ: Jacobians against autograd, the convex problem against scipy, the trust region, the laws."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bounds.types import InputError
from diagnostics.solver_curve import calibration_kl
from merging import Task, TaskVectors, gauss_newton, merge, merged, suites
from merging.artifact import MergeArtifact
from merging.gauss_newton import GaussNewtonSettings, TangentSettings, linearised
from merging.gauss_newton import jacobian as coefficient_jacobian
from merging.gauss_newton.jacobian import centred_basis, jacobian_rows, rows_by_jvp, rows_by_vjp
from merging.gauss_newton.linearised import Convex, minimise
from merging.gauss_newton.solver import _standard_error
from merging.learned import LearnedSettings, prepare
from merging.learned.objectives import teacher_kl
from merging.suites import toy
from tests.tolerances import assert_near

EXACT: dict[str, Any] = {"batch": None, "cotangents": None, "check": None, "least_damping": 0.0}
TEMPERATURE = 1.7


def problem_of(overlap=0.5, **settings: Any):
    suite = toy.build(overlap=overlap)
    chosen = GaussNewtonSettings(**{"examples": 6, "temperature": TEMPERATURE, **settings})
    return prepare(suite.task_vectors, suite.tasks, chosen.learned()), chosen


def learned_by(method, task_vectors, tasks, **settings: Any) -> tuple[torch.Tensor, MergeArtifact]:
    result = merge(method, task_vectors, tasks, **settings)
    assert result.coefficients is not None
    return result.coefficients, result


def score_function(problem, task, index):
    """λ [T·L] -> scores [n, C], by the definition of the merge."""
    tv = problem.task_vectors
    column = {name: i for i, names in enumerate(problem.blocks.values()) for name in names}

    def scores(flat):
        lambda_ = flat.view(len(tv), -1)
        theta = {
            name: value + sum(lambda_[t, column[name]] * tv.deltas[t][name] for t in range(len(tv)))
            for name, value in tv.base.items()
        }
        return problem.forwards[task](theta, problem.inputs[task][index])

    return scores


def total_kl(problem, flat, score=None):
    """Calibration KL at λ, of the network or of the given (task -> scores) functions."""
    losses = []
    for t, teacher in enumerate(problem.teacher_scores):
        scores = (score[t] if score else score_function(problem, t, torch.arange(len(teacher))))(flat)
        losses.append(teacher_kl(scores, teacher, problem.settings.temperature))
    return torch.stack(losses).mean()


def optimum(function, start, **options):
    """Minimise with scipy's BFGS on autograd's gradient."""

    def value(x):
        flat = torch.from_numpy(x.copy()).requires_grad_()
        result = function(flat)
        (gradient,) = torch.autograd.grad(result, [flat])
        return float(result.detach()), gradient.numpy()

    return minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000, **options})


@pytest.mark.parametrize("granularity", ["tensor", "task"])
@pytest.mark.parametrize("by", [rows_by_vjp, rows_by_jvp, jacobian_rows])
def test_rows_equal_the_dense_jacobian(by, granularity, monkeypatch):
    monkeypatch.setattr(coefficient_jacobian, "CHUNK", 3)  # several chunks of examples
    problem, _ = problem_of(granularity=granularity)
    index, flat = torch.tensor([4, 0, 3, 1]), torch.randn(3 * len(problem.blocks), dtype=torch.float64)
    theta = merged(problem.task_vectors, flat.view(3, -1), problem.blocks)
    cotangents = torch.randn(2, 3, dtype=torch.float64)

    def choose(scores, targets):
        return cotangents * targets.sum(-1)[..., None, None]

    targets = torch.rand(4, 3, dtype=torch.float64)
    got = by(problem, theta, 2, index, targets, choose, 2)
    scores = score_function(problem, 2, index)
    dense = torch.autograd.functional.jacobian(scores, flat)
    expected = torch.einsum("nrc,nck->nrk", choose(None, targets), dense)
    assert_near(got.scores, scores(flat))
    assert_near(got.rows, expected)


def test_more_cotangents_than_a_chunk_holds(monkeypatch):
    problem, _ = problem_of(granularity="task")
    theta, index = problem.task_vectors.expert(0), torch.arange(3)
    targets, basis = torch.zeros(3, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def choose(scores, targets):
        return basis.expand(*scores.shape[:-1], -1, -1)

    monkeypatch.setattr(coefficient_jacobian, "CHUNK", 2)
    chunked = rows_by_vjp(problem, theta, 0, index, targets, choose, 5)
    forwards = rows_by_jvp(problem, theta, 0, index, targets, choose, 5)
    assert_near(chunked.rows, forwards.rows)
    assert_near(chunked.cotangents, forwards.cotangents)


def test_the_cheaper_way_is_taken(monkeypatch):
    """With 3 entries of λ, up to 3 cotangents go backwards and 4 go forwards."""
    problem, _ = problem_of(granularity="task")
    taken = []
    for name in ("rows_by_vjp", "rows_by_jvp"):
        monkeypatch.setattr(coefficient_jacobian, name, lambda *args, name=name: taken.append(name))
    for count in (3, 4):
        jacobian_rows(problem, {}, 0, torch.arange(1), torch.zeros(1, 3), lambda s, t: s, count)
    assert taken == ["rows_by_vjp", "rows_by_jvp"]
    assert [coefficient_jacobian.row_passes(problem, count) for count in (1, 3, 4)] == [1, 3, 3]


def test_centred_basis_spans_the_complement_of_ones():
    basis = centred_basis(5)
    assert_near(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    assert_near(basis.T @ basis, torch.eye(5, dtype=torch.float64) - 0.2)


def visited(problem, flat, most, models=None, batch=None):
    models = linearised.blank(problem) if models is None else models
    n = len(problem.teacher_scores[0])
    batch = [torch.arange(n)] * 3 if batch is None else batch
    theta = merged(problem.task_vectors, flat.view(3, -1), problem.blocks)
    return models, linearised.visit(problem, models, flat, theta, batch, most)


def test_derivatives_of_the_model_after_an_exact_visit():
    """Loss and gradient are the network's, the GGN is mean J^T (diag p - pp^T) J / u² from a dense Jacobian."""
    problem, _ = problem_of()
    flat = torch.rand(6, dtype=torch.float64)
    models, passes = visited(problem, flat, None)
    assert passes == 6 * (2 + 1 + 2)
    convex = Convex(models, TEMPERATURE)
    gradient, ggn = convex.derivatives(flat)
    point = flat.clone().requires_grad_()
    loss = total_kl(problem, point)
    assert convex.loss(flat) == pytest.approx(float(loss.detach()))
    assert_near(gradient, torch.autograd.grad(loss, [point])[0])
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for t in range(3):
        scores = score_function(problem, t, torch.arange(6))
        dense = torch.autograd.functional.jacobian(scores, flat)
        for p, jacobian in zip((scores(flat) / TEMPERATURE).softmax(1), dense, strict=True):
            expected += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian / TEMPERATURE**2 / 18
    assert_near(ggn, expected)


def test_one_cotangent_gives_the_exact_gradient_and_keeps_the_secant():
    """After a second visit: exact gradient there, and J u-rows true; the first step's change of scores explained."""
    problem, _ = problem_of()
    first, second = torch.full((6,), 0.2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    models, passes = visited(problem, first, 1)
    assert passes == 18
    visited(problem, second, 1, models)
    point = second.clone().requires_grad_()
    expected = torch.autograd.grad(total_kl(problem, point), [point])[0]
    assert_near(Convex(models, TEMPERATURE).derivatives(second)[0], expected)
    for t, model in enumerate(models):
        scores = score_function(problem, t, torch.arange(6))
        assert_near(model.scores, scores(second))
        p, q = ((s / TEMPERATURE).softmax(1) for s in (scores(second), problem.teacher_scores[t]))
        residual = torch.nn.functional.normalize(p - q, dim=1)
        # On the complement of the cotangent, the chord from the first visit is reproduced.
        chord = torch.einsum("nck,k->nc", model.jacobian, second - first) - (scores(second) - scores(first))
        outside = chord - (chord * residual).sum(1, keepdim=True) * residual
        assert float(outside.abs().max()) < 1e-10


def test_one_cotangent_is_exact_for_two_classes_only():
    problem, _ = problem_of()
    flat = torch.rand(6, dtype=torch.float64)
    exact, few = visited(problem, flat, None)[0], visited(problem, flat, 1)[0]
    assert_near(exact[1].jacobian, few[1].jacobian)  # two classes: one cotangent is all
    full = (few[0].jacobian - exact[0].jacobian).abs().max()
    assert float(full) > 1e-3  # three classes: one is not


def test_the_convex_problem_against_scipy():
    problem, _ = problem_of()
    start = torch.full((6,), 0.3, dtype=torch.float64)
    models, _ = visited(problem, start, None)
    linear = []
    for t in range(3):
        scores = score_function(problem, t, torch.arange(6))
        base, dense = scores(start), torch.autograd.functional.jacobian(scores, start)
        linear.append(lambda flat, base=base, dense=dense: base + dense @ (flat - start))
    expected = optimum(lambda x: total_kl(problem, x, linear) + 0.005 * (x - start).square().sum(), start.numpy())
    assert_near(minimise(Convex(models, TEMPERATURE), start, 0.01), torch.from_numpy(expected.x), torch.float32)


def test_the_sharpness_penalty_against_brute_force():
    """The penalty is the rise of the KL averaged over the sphere, to second order; its minimiser is scipy's."""
    problem, _ = problem_of(granularity="task")
    start, rho = torch.full((3,), 0.3, dtype=torch.float64), 0.05
    models, _ = visited(problem, start, None)
    plain, sharp = Convex(models, TEMPERATURE), Convex(models, TEMPERATURE, rho)
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    epsilons = torch.from_numpy(rho * directions / np.linalg.norm(directions, axis=1, keepdims=True))
    rises = torch.tensor([(plain.loss(start + e) + plain.loss(start - e)) / 2 for e in epsilons]) - plain.loss(start)
    error = 4 * float(rises.std()) / len(rises) ** 0.5 + 0.01 * float(rises.mean())
    assert sharp.loss(start) - plain.loss(start) == pytest.approx(float(rises.mean()), abs=error)

    wide = Convex(models, TEMPERATURE, 1.0)
    dense = [torch.autograd.functional.jacobian(score_function(problem, t, torch.arange(6)), start) for t in range(3)]
    base = [score_function(problem, t, torch.arange(6))(start) for t in range(3)]

    def penalised(flat):
        linear = [lambda x, t=t: base[t] + dense[t] @ (x - start) for t in range(3)]
        trace = torch.zeros((), dtype=torch.float64)
        for t in range(3):
            p = (linear[t](flat) / TEMPERATURE).softmax(1)
            for i in range(6):
                kernel = p[i].diag() - p[i].outer(p[i])
                trace = trace + (dense[t][i].T @ kernel @ dense[t][i]).trace() / TEMPERATURE**2 / 18
        return total_kl(problem, flat, linear) + trace / 6 + 0.05 * (flat - start).square().sum()

    point = torch.tensor([0.5, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    value = penalised(point)
    expected = torch.autograd.grad(value, [point])[0] - 0.1 * (point.detach() - start)
    assert_near(wide.derivatives(point.detach())[0], expected)
    found = minimise(wide, start, 0.1)
    assert_near(found, torch.from_numpy(optimum(penalised, start.numpy()).x), torch.float32)
    assert float((found - minimise(plain, start, 0.1)).abs().max()) > 1e-2


def linear_suite():
    """The toy world without its activation: experts differ in the first layer only, so scores are linear in λ."""
    return toy.build(overlap=0.7, activation="linear")


def test_on_a_linear_network_it_reaches_scipys_optimum_and_tangents():
    suite = linear_suite()
    settings: dict[str, Any] = {"granularity": "task", "examples": 24}
    problem = prepare(suite.task_vectors, suite.tasks, GaussNewtonSettings(**settings).learned())
    best = optimum(lambda x: total_kl(problem, x), np.full(3, 0.3))
    newton, run = learned_by("gauss_newton", suite.task_vectors, suite.tasks, **settings, **EXACT, tolerance=0)
    tangent, _ = learned_by("tangent", suite.task_vectors, suite.tasks, **settings, damping=1e-10)
    for lambda_ in (newton, tangent):
        assert torch.allclose(lambda_.flatten(), torch.from_numpy(best.x), atol=1e-4)
    assert run.history["loss"][-1] == pytest.approx(best.fun, rel=1e-6)
    few, _ = learned_by("gauss_newton", suite.task_vectors, suite.tasks, **settings, iterations=200, tolerance=0)
    assert float(total_kl(problem, few.flatten())) == pytest.approx(best.fun, rel=1e-3)


def test_every_step_of_the_classical_method_lowers_the_calibration_kl():
    suite = toy.build(overlap=0.6)
    found = merge(
        "gauss_newton", suite.task_vectors, suite.tasks, examples=24, **EXACT, damping=1e-6, init=-1.0, tolerance=0
    )
    losses = found.history["loss"]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_the_network_disagrees_with_is_not_taken():
    """A network whose scores jump as soon as λ moves: every candidate is refused, λ stays, the loop ends."""
    suite = toy.build(overlap=0.5)
    start = merged(suite.task_vectors, torch.full((3, 2), 1 / 3, dtype=torch.float64))

    def trap(task):
        def forward(params, inputs):
            moved = torch.stack([(params[k] - start[k]).abs().sum() for k in start]).sum().detach()
            return task.forward(params, inputs) * (1.0 - 50.0 * (moved > 1e-6))

        return Task(
            task.name,
            forward,
            task.class_names,
            train=task.train,
            calibration=task.calibration,
            validation=task.validation,
            test=task.test,
        )

    tasks = [trap(task) for task in suite.tasks]
    settings = GaussNewtonSettings(examples=8, batch=8, check=2, attempts=3, damping=0.01)
    problem = prepare(suite.task_vectors, tasks, settings.learned())
    state = gauss_newton.init(problem, settings)
    before = state.flat.clone()
    gauss_newton.update(problem, settings, state)
    assert torch.equal(state.flat, before)
    assert state.finished
    assert state.damping == pytest.approx(0.01 * 4**3)
    assert state.history["passes"] == [pytest.approx(3 * 8 + 3 * 3 * 2 / 3)]


def test_passes_are_those_of_a_counted_network():
    """Forward calls of examples, counted inside the network: one per VJP and one per check."""
    suite = toy.build(overlap=0.5)
    seen = []

    def counted(task):
        def forward(params, inputs):
            seen.append(len(inputs))
            return task.forward(params, inputs)

        return Task(
            task.name,
            forward,
            task.class_names,
            train=task.train,
            calibration=task.calibration,
            validation=task.validation,
            test=task.test,
        )

    settings = GaussNewtonSettings(examples=8, batch=4, check=2)
    problem = prepare(suite.task_vectors, [counted(task) for task in suite.tasks], settings.learned())
    seen.clear()
    state = gauss_newton.init(problem, settings)
    gauss_newton.update(problem, settings, state)
    # vmap runs the network once per chunk, on one (batched) example; checks are run on two examples per task.
    assert seen[:3] == [1, 1, 1]
    checks = seen[3:]
    assert set(checks) == {2}
    assert state.history["passes"] == [pytest.approx(3 * 4 + sum(checks) / 3)]


def test_deterministic_given_the_seed():
    suite = toy.build(overlap=0.5)
    same, again, other = (
        learned_by("gauss_newton", suite.task_vectors, suite.tasks, examples=16, batch=4, iterations=5, seed=seed)[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("method", ["gauss_newton", "tangent"])
def test_one_expert_and_equal_experts(method):
    """One expert: λ -> 1 gives the expert. Equal experts: the same function, λ summing to 1, though G is singular."""
    suite = toy.build()
    tv = suite.task_vectors
    one = TaskVectors(tv.base, tv.deltas[:1], tv.names[:1])
    settings: dict[str, Any] = {"granularity": "task", "examples": 24}
    newton: dict[str, Any] = {**EXACT, "init": 0.3, "tolerance": 0} if method == "gauss_newton" else {"init": 1.0}
    lambda_, _ = learned_by(method, one, suite.tasks[:1], **settings, **newton)
    assert torch.allclose(lambda_, torch.ones(1, 1, dtype=torch.float64), atol=1e-5)
    equal = TaskVectors(tv.base, [tv.deltas[0]] * 3, tv.names)
    tasks = [
        Task(
            name,
            t.forward,
            t.class_names,
            train=t.train,
            calibration=t.calibration,
            validation=t.validation,
            test=t.test,
        )
        for name, t in zip(tv.names, [suite.tasks[0]] * 3, strict=True)
    ]
    newton = {**newton, "init": 0.1 if method == "gauss_newton" else 1 / 3}
    lambda_, result = learned_by(method, equal, tasks, **settings, **newton)
    assert float(lambda_.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(result.merged["first.weight"], tv.expert(0)["first.weight"], atol=1e-4)


def test_a_singular_curvature_with_hardly_any_damping_is_solved():
    suite = toy.build()
    tv = suite.task_vectors
    equal = TaskVectors(tv.base, [tv.deltas[0]] * 3, tv.names)
    problem = prepare(equal, suite.tasks, TangentSettings(examples=6, granularity="task").learned())
    start = torch.zeros(3, dtype=torch.float64)
    convex = Convex(visited(problem, start, None)[0], 1.0)
    assert int(torch.linalg.matrix_rank(convex.derivatives(start)[1])) == 1
    best = minimise(convex, start, 1e-300)
    assert torch.allclose(best, best.mean().expand(3), atol=1e-3)
    assert convex.loss(best) < convex.loss(start)
    assert float(convex.derivatives(best)[0].norm()) < 1e-4


@pytest.mark.parametrize("method", ["gauss_newton", "tangent"])
def test_zero_task_vectors_leave_lambda_at_the_init(method):
    suite = toy.build()
    zero = {k: torch.zeros_like(v) for k, v in suite.task_vectors.base.items()}
    tv = TaskVectors(suite.task_vectors.base, [zero] * 3, suite.task_vectors.names)
    lambda_, _ = learned_by(method, tv, suite.tasks, examples=8, init=0.25)
    assert torch.equal(lambda_, torch.full((3, 2), 0.25, dtype=torch.float64))


def test_stops_when_the_loss_no_longer_falls():
    suite = linear_suite()
    _, found = learned_by("gauss_newton", suite.task_vectors, suite.tasks, granularity="task", examples=24, **EXACT)
    assert 2 <= len(found.history["loss"]) < GaussNewtonSettings.iterations
    assert len(found.history["passes"]) == len(found.history["loss"])


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("gauss_newton", {"damping": 0.0}, "damping"),
        ("tangent", {"damping": float("nan")}, "damping"),
        ("gauss_newton", {"least_damping": -1.0}, "least_damping"),
        ("gauss_newton", {"batch": 0}, "batch"),
        ("gauss_newton", {"cotangents": 0}, "cotangents"),
        ("gauss_newton", {"check": -1}, "check"),
        ("gauss_newton", {"iterations": 0}, "iterations"),
        ("gauss_newton", {"attempts": 0}, "attempts"),
        ("gauss_newton", {"tolerance": 1.0}, "tolerance"),
        ("tangent", {"rho": -1.0}, "rho"),
        ("tangent", {"temperature": 0.0}, "temperature"),
        ("tangent", {"granularity": "neuron"}, "granularity"),
        ("tangent", {"examples": 1000}, "calibration examples"),
        ("tangent", {"batch": 3}, "setting of tangent"),
    ],
)
def test_bad_settings_are_refused(method, setting, message):
    suite = toy.build()
    with pytest.raises(InputError, match=message):
        merge(method, suite.task_vectors, suite.tasks, **setting)


def test_a_loss_that_is_not_finite_names_the_task():
    suite = toy.build()
    settings = GaussNewtonSettings(examples=8, batch=8)
    problem = prepare(suite.task_vectors, suite.tasks, settings.learned())
    problem.teacher_scores[1][0] = float("nan")
    with pytest.raises(InputError, match="loss of task 'task1' at iteration 0"):
        gauss_newton.update(problem, settings, gauss_newton.init(problem, settings))


def test_the_result_is_the_mean_of_the_last_sweep():
    problem, settings = problem_of(examples=6, batch=2)
    state = gauss_newton.init(problem, settings)
    assert torch.equal(gauss_newton.coefficients(problem, state).flatten(), state.flat)
    iterates = [gauss_newton.update(problem, settings, state).flat for _ in range(5)]
    assert_near(gauss_newton.coefficients(problem, state).flatten(), torch.stack(iterates[2:]).mean(0))


def test_the_doubt_of_a_check():
    """Standard error of a mean drawn without replacement; none when all visited examples are checked."""
    models, _ = visited(problem_of()[0], torch.rand(6, dtype=torch.float64), 1)
    excess = torch.tensor([[1.0, 3.0], [0.0, 2.0], [1.0, 5.0]])
    expected = float(excess.std()) * ((1 - 6 / 18) / 6) ** 0.5
    assert float(_standard_error(excess, models)) == pytest.approx(expected)
    assert float(_standard_error(torch.rand(3, 6), models)) == 0


@pytest.mark.mini8
def test_through_attention_both_ways_agree():
    suite = suites.load("mini8")
    settings = TangentSettings(granularity="task", examples=4)
    problem = prepare(suite.task_vectors, suite.tasks, settings.learned())
    theta = merged(suite.task_vectors, torch.full((8, 1), 0.2), problem.blocks)
    targets = problem.teacher_scores[0].double()

    def choose(scores, targets):
        return centred_basis(10).expand(*scores.shape[:-1], -1, -1)

    ways = [by(problem, theta, 0, torch.arange(4), targets, choose, 9) for by in (rows_by_vjp, rows_by_jvp)]
    assert_near(ways[0].rows, ways[1].rows, torch.float32)
    assert float(ways[0].rows.abs().max()) > 0.1


@pytest.mark.mini8
def test_it_beats_descent_at_equal_passes_on_mini8():
    """Calibration KL of 16 examples per task after at most as many passes as 5 steps of samerging (320)."""
    suite = suites.load("mini8")
    newton, run = learned_by("gauss_newton", suite.task_vectors, suite.tasks, iterations=9, examples=16)
    descent, _ = learned_by("samerging", suite.task_vectors, suite.tasks, steps=5, examples=16, perturbation="none")
    assert run.history["passes"][-1] <= 320
    problem = prepare(suite.task_vectors, suite.tasks, LearnedSettings(examples=16))
    start, after_newton, after_descent = (
        calibration_kl(problem, lambda_) for lambda_ in (torch.full((8, 56), 1 / 8), newton, descent)
    )
    assert start - after_newton > 1.5 * (start - after_descent) > 0
