"""The learned merges: gradients against finite differences and closed forms, SAM's second pass, determinism."""

import pytest
import torch

from bounds.types import InputError, Sample
from merging import Task, TaskVectors, learned, merge, merged
from merging.learned import LearnedSettings, Problem
from merging.learned.objectives import teacher_kl
from merging.learned.perturbations import PERTURBATIONS, Displacement, Pass, in_weights
from merging.params import partition
from merging.suites import toy

RHO = 0.3


def squared_error(student, teacher, temperature):
    return 0.5 * (student - teacher).square().sum(dim=1).mean()


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """The gradient a leaf has."""
    assert leaf.grad is not None
    return leaf.grad


def quadratic_problem(perturbation: str) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """Linear networks and squared error: L(λ) = λ^T A λ/2 - b^T λ + const. Returns the problem, A and b."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = {"u": draw(2, 3), "v": draw(2, 3)}
    tv = TaskVectors(base, [{"u": draw(2, 3), "v": draw(2, 3)} for _ in range(2)], ["a", "b"])
    inputs, teachers = [draw(5, 6), draw(5, 6)], [draw(5, 2), draw(5, 2)]

    def forward(params, x):
        return x[:, :3] @ params["u"].T + x[:, 3:] @ params["v"].T

    settings = LearnedSettings(perturbation=perturbation, rho=RHO, batch=5, examples=5, init=0.4)
    blocks = partition(base, "tensor")
    problem = Problem(
        task_vectors=tv,
        blocks=blocks,
        forwards=[forward] * 2,
        inputs=inputs,
        teacher_scores=teachers,
        objective=squared_error,
        perturbation=PERTURBATIONS[perturbation],
        settings=settings,
    )
    columns, residuals = [], []
    for x, teacher in zip(inputs, teachers, strict=True):
        scores = [
            forward({k: d[k] if k == name else torch.zeros_like(d[k]) for k in d}, x).flatten()
            for d in tv.deltas
            for name in blocks
        ]
        columns.append(torch.stack(scores, dim=1))
        residuals.append((teacher - forward(base, x)).flatten())
    a = sum(m.T @ m for m in columns) / (5 * 2)
    b = sum(m.T @ r for m, r in zip(columns, residuals, strict=True)) / (5 * 2)
    return problem, torch.as_tensor(a), torch.as_tensor(b)


def test_the_gradient_of_a_quadratic_is_exact():
    problem, a, b = quadratic_problem("none")
    state = learned.init(problem)
    start = state.coefficients.detach().flatten().clone()
    learned.update(problem, state)
    assert state.coefficients.grad is not None
    assert torch.allclose(state.coefficients.grad.flatten(), a @ start - b, atol=1e-12)


@pytest.mark.parametrize("perturbation", ["coefficients", "coefficients-adaptive"])
def test_sam_on_a_quadratic_takes_its_gradient_at_the_perturbed_point(perturbation):
    problem, a, b = quadratic_problem(perturbation)
    state = learned.init(problem)
    start = state.coefficients.detach().flatten().clone()
    learned.update(problem, state)
    first = a @ start - b
    if perturbation == "coefficients":
        epsilon = RHO * first / first.norm()
        assert epsilon.norm() == pytest.approx(RHO)
    else:
        epsilon = RHO * start.square() * first / (start.abs() * first).norm()
    assert state.coefficients.grad is not None
    assert torch.allclose(state.coefficients.grad.flatten(), a @ (start + epsilon) - b, atol=1e-12)
    assert state.history["perturbation_norm"] == [pytest.approx(float(epsilon.norm()))]


def test_sam_in_weights_perturbs_the_merged_weights():
    problem, _, _ = quadratic_problem("weights")
    state = learned.init(problem)
    start = state.coefficients.detach().clone()
    learned.update(problem, state)

    def loss(theta):
        data = zip(problem.forwards, problem.inputs, problem.teacher_scores, strict=True)
        return torch.stack([squared_error(f(theta, x), s, 1) for f, x, s in data]).mean()

    theta = {k: v.requires_grad_() for k, v in merged(problem.task_vectors, start, problem.blocks).items()}
    gradient = torch.autograd.grad(loss(theta), list(theta.values()))
    length = torch.cat([g.flatten() for g in gradient]).norm()
    moved = {
        k: (v + RHO * g / length).detach().requires_grad_() for (k, v), g in zip(theta.items(), gradient, strict=True)
    }
    second = torch.autograd.grad(loss(moved), list(moved.values()))
    expected = torch.stack(
        [
            torch.stack([(delta[k] * g).sum() for k, g in zip(theta, second, strict=True)])
            for delta in problem.task_vectors.deltas
        ]
    )
    assert state.coefficients.grad is not None
    assert torch.allclose(state.coefficients.grad, expected, atol=1e-12)


def test_adaptive_perturbation_at_zero_is_exactly_zero_and_reported():
    suite = toy.build()
    first = merge(
        "samerging",
        suite.task_vectors,
        suite.tasks,
        steps=1,
        examples=8,
        init=0.0,
        perturbation="coefficients-adaptive",
    )
    assert first.history["perturbation_norm"] == [0.0]


def test_zero_gradient_gives_no_displacement():
    zero = torch.zeros(2, 1)
    assert in_weights(zero, Pass(zero, zero, {"w": torch.zeros(3)}), 1.0) == Displacement()


def test_kl_gradient_in_lambda_matches_finite_differences():
    suite = toy.build(overlap=0.5)
    problem = learned.prepare(suite.task_vectors, suite.tasks, LearnedSettings(examples=8, batch=8, granularity="task"))
    batch = [torch.arange(8)] * 3
    coefficients = torch.tensor([[0.3], [0.5], [0.2]], dtype=torch.float64)
    exact = learned.evaluate(problem, coefficients, batch).coefficients
    for t in range(3):
        step = torch.zeros_like(coefficients)
        step[t] = 1e-5
        high, low = (learned.evaluate(problem, coefficients + s, batch).losses.mean() for s in (step, -step))
        assert float(exact[t, 0]) == pytest.approx(float((high - low) / 2e-5), rel=1e-5)


def test_teacher_kl_is_the_definition_and_survives_large_scores():
    student, teacher = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    assert float(teacher_kl(student, teacher, 2.0)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert torch.isfinite(teacher_kl(torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]]), 1.0))


def test_learning_finds_the_known_answer_of_disjoint_tasks():
    suite = toy.build()
    result = merge(
        "samerging",
        suite.task_vectors,
        suite.tasks,
        perturbation="none",
        steps=400,
        examples=24,
        batch=24,
        learning_rate=0.03,
        granularity="task",
    )
    assert result.coefficients is not None
    assert torch.allclose(result.coefficients, torch.ones(3, 1, dtype=torch.float64), atol=0.02)
    assert result.history["loss"][-1] < 1e-3 < result.history["loss"][0]


def test_two_runs_with_one_seed_agree_and_another_seed_differs():
    suite = toy.build(overlap=0.5)
    runs = [
        merge("samerging", suite.task_vectors, suite.tasks, steps=5, examples=16, batch=4, seed=seed).coefficients
        for seed in (3, 3, 4)
    ]
    assert runs[0] is not None
    assert runs[1] is not None
    assert runs[2] is not None
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("perturbation", ["coefficients", "coefficients-adaptive", "weights"])
def test_a_perturbation_changes_the_coefficients(perturbation):
    suite = toy.build(overlap=0.5)
    plain, perturbed = (
        merge("samerging", suite.task_vectors, suite.tasks, steps=5, examples=16, perturbation=p, rho=0.07).coefficients
        for p in ("none", perturbation)
    )
    assert plain is not None
    assert perturbed is not None
    assert float((plain - perturbed).abs().max()) > 1e-4


def test_teachers_are_scored_on_the_very_inputs_the_student_sees():
    suite = toy.build()
    problem = learned.prepare(suite.task_vectors, suite.tasks, LearnedSettings(examples=8))
    for t, task in enumerate(suite.tasks):
        expected = task.forward(suite.task_vectors.expert(t), problem.inputs[t])
        assert torch.equal(problem.teacher_scores[t], expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"perturbation": "sideways"}, "perturbation: expected"),
        ({"objective": "mse"}, "objective: expected"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"rho": float("nan")}, "rho"),
        ({"temperature": 0.0}, "temperature"),
        ({"init": float("inf")}, "init"),
        ({"examples": 1000}, "calibration examples"),
        ({"granularity": "neuron"}, "granularity"),
        ({"colour": 1}, "setting of samerging"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    suite = toy.build()
    with pytest.raises(InputError, match=message):
        merge("samerging", suite.task_vectors, suite.tasks, **setting)


def test_other_tasks_are_refused():
    suite = toy.build()
    with pytest.raises(InputError, match="same order"):
        merge("samerging", suite.task_vectors, suite.tasks[::-1])


def test_a_loss_that_is_not_finite_names_task_and_step():
    suite = toy.build()
    task = suite.tasks[1]
    calls = []

    def broken(params, inputs):
        calls.append(1)
        return task.forward(params, inputs) * (float("nan") if len(calls) > 3 else 1.0)

    tasks = [
        suite.tasks[0],
        Task(
            "task1",
            broken,
            task.class_names,
            train=task.train,
            calibration=task.calibration,
            validation=task.validation,
            test=task.test,
        ),
        suite.tasks[2],
    ]
    with pytest.raises(InputError, match="loss of task 'task1' at step"):
        merge("samerging", suite.task_vectors, tasks, steps=5, examples=8, perturbation="none")


def test_tasks_check_their_splits():
    task = toy.build().tasks[0]
    assert task.train.labels is not None
    splits = {
        "train": task.train,
        "calibration": task.calibration,
        "validation": task.validation,
        "test": task.test,
    }
    for change, message in (
        ({"calibration": task.train}, "no labels"),
        ({"train": task.train.take(slice(0, 0))}, "at least one"),
        ({"test": Sample(task.test.inputs, task.train.labels[:48] + 9)}, r"0\.\.2"),
    ):
        with pytest.raises(InputError, match=message):
            Task("t", task.forward, task.class_names, **{**splits, **change})
