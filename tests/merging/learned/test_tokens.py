"""Learning on scores per position: losses and gradients are those of plain means over counted tokens."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bounds.types import InputError
from merging import learned, merge
from merging.commands.merge import main
from merging.execution import Execution
from merging.learned import LearnedSettings
from merging.learned import problem as problem_of
from merging.learned import tokens as module
from merging.learned.objectives import OBJECTIVES
from merging.learned.tokens import token_loss
from merging.measured import Positions
from merging.suites import toy
from tests.joined import together
from tests.sequences_world import LENGTH, VOCABULARY, world

U = 1.7
QUICK = {"steps": 3, "examples": 12, "batch": 5, "top_k": 3}


def plain(objective, student, teacher, counted):
    """The objective's own formula on all V classes, position by position, and the mean over those that count."""
    p, q = (teacher / U).softmax(-1), (student / U).softmax(-1)
    m = (p + q) / 2
    values = {
        "kl": (p * (p / q).log()).sum(-1),
        "reverse-kl": (q * (q / p).log()).sum(-1),
        "jensen-shannon": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
        "cross-entropy": -q.gather(-1, teacher.argmax(-1, keepdim=True))[..., 0].log(),
        "squared": (q.log() - p.log()).square().mean(-1),
        "entropy": -(q * q.log()).sum(-1),
    }[objective]
    return (values * counted).sum() / counted.sum()


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2))
    counted = torch.arange(LENGTH) < torch.tensor([[8], [3], [5]])
    return student.requires_grad_(), teacher, counted


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_all_classes_a_loss_is_its_formula_averaged_over_counted_positions(objective):
    student, teacher, counted = drawn()
    found = token_loss(student, (teacher / U).log_softmax(-1), Positions(counted), OBJECTIVES[objective], U)
    (ours,) = torch.autograd.grad(found, [student])
    expected = plain(objective, student, teacher, counted)
    (oracle,) = torch.autograd.grad(expected, [student])
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(ours, oracle, atol=1e-12)
    assert not bool(ours[~counted].any())
    by_document = sum(plain(objective, student[i], teacher[i], counted[i]) for i in range(3)) / 3
    assert abs(float((found - by_document).detach())) > 1e-3, "the mean of documents' means is another figure"


def coarse(objective, k, seed=0):
    suite = world()
    task, teacher = suite.tasks[0], suite.task_vectors.expert(0)
    taught = task.taught(teacher, task.calibration.inputs, "calibration", top_k=k, temperature=U)
    assert taught.positions is not None
    student = task.forward(suite.task_vectors.expert(1), task.calibration.inputs)
    return float(token_loss(student, taught.scores, taught.positions, OBJECTIVES[objective], U))


@pytest.mark.parametrize("objective", ["kl", "reverse-kl", "jensen-shannon"])
def test_the_error_of_few_classes_has_one_sign_and_vanishes(objective):
    found = [coarse(objective, k) for k in (1, 2, 4, 8, VOCABULARY - 1, VOCABULARY)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found))
    assert found[0] < found[-1] - 1e-3
    assert found[-2] == pytest.approx(found[-1], abs=1e-12)


@pytest.mark.parametrize("objective", ["cross-entropy", "entropy"])
def test_what_needs_no_teacher_or_its_likeliest_class_alone_is_exact_for_every_k(objective):
    """Also where the rest together is likelier than the likeliest class: with k = 1 it is, at some positions."""
    suite = world()
    task = suite.tasks[0]
    log_p = task.taught(suite.task_vectors.expert(0), task.calibration.inputs, "calibration", top_k=1).scores
    assert bool((log_p[..., 1] > log_p[..., 0]).any())
    found = [coarse(objective, k) for k in (1, 3, VOCABULARY)]
    assert found == pytest.approx([found[-1]] * 3, abs=1e-12)


def test_a_merge_learns_what_a_plain_loop_over_tokens_gives():
    """One step of SGD from the average: λ is that of autograd through weights, network and a dense loss."""
    suite = world()
    vectors = suite.task_vectors
    settings = {"steps": 1, "examples": 24, "batch": 24, "optimizer": "sgd", "perturbation": "none", "top_k": None}
    found = merge("samerging", suite, granularity="task", learning_rate=0.5, temperature=U, **settings)
    lam = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    theta = {
        name: base + sum(lam[t] * vectors.deltas[t][name] for t in range(2)) for name, base in vectors.base.items()
    }
    losses = []
    for index, task in enumerate(suite.tasks):
        x = task.calibration.inputs
        student, teacher = task.forward(theta, x), task.forward(vectors.expert(index), x)
        losses.append(plain("kl", student, teacher, task.counted(task.calibration)))
    mean = torch.stack(losses).mean()
    (slope,) = torch.autograd.grad(mean, [lam])
    assert found.coefficients is not None
    assert torch.allclose(found.coefficients[:, 0], 0.5 - 0.5 * slope, atol=1e-10)
    assert found.history["loss"][0] == pytest.approx(float(mean.detach()))


CASES = [
    {"perturbation": "none", "optimizer": "sgd"},
    {"perturbation": "coefficients"},
    {"perturbation": "ggn-trace", "top_k": None},
    {"perturbation": "ggn-trace", "batch": 3},
    {"objective": "entropy", "perturbation": "none"},
]


def learning(joined=None, **settings):
    execution = Execution() if joined is None else Execution(processes=joined)
    result = merge("samerging", world(), execution=execution, **{**QUICK, **settings})
    assert result.coefficients is not None
    return result.coefficients.tolist(), result.history["loss"]


@pytest.fixture(scope="module")
def alone():
    world()  # before processes are forked
    return [learning(**case) for case in CASES]


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_learn_what_one_learns(alone, size):
    """A process's part of a batch weighs as many tokens as it has, not as many documents."""
    for found in together(lambda joined: [learning(joined, **case) for case in CASES], size):
        for (lam, losses), (one, expected) in zip(found, alone, strict=True):
            assert torch.allclose(torch.tensor(lam), torch.tensor(one), atol=1e-9)
            assert losses == pytest.approx(expected, abs=1e-9)


def test_a_part_that_is_weighted_by_its_documents_is_seen(alone, monkeypatch):
    monkeypatch.setattr(problem_of, "weight", lambda counted, index: torch.tensor(len(index)))
    for found in together(lambda joined: learning(joined, **CASES[0]), 3):
        assert max(abs(a - b) for a, b in zip(found[1], alone[0][1], strict=True)) > 1e-3


def test_teachers_in_a_file_change_nothing(monkeypatch):
    first = learning()
    monkeypatch.setattr(problem_of, "LARGE", 0)
    assert learning() == first


def test_the_number_of_classes_is_a_setting_of_sequences_alone(tmp_path, capsys):
    with pytest.raises(InputError, match=r"top_k: expected tasks with scores at every position.* got 8"):
        merge("samerging", toy.build(), examples=8, top_k=8)
    with pytest.raises(InputError, match="top_k: expected at least 1, or None for all"):
        LearnedSettings(top_k=0)
    assert main(["--suite", "toy", "--top-k", "64", "--examples", "8", "--out", str(tmp_path / "a.pt")]) == 2
    assert "--top-k: expected a suite whose tasks have scores at every position" in capsys.readouterr().err
    few, many = (learning(top_k=k)[0] for k in (1, None))
    assert few != many


def test_positions_of_tasks_that_others_serve_are_empty():
    assert module.nothing().counted.numel() == 0
    assert module.weight(torch.tensor([[True, True], [True, False]]), torch.tensor([0, 1])) == 3


def test_dense_kl_at_k_is_the_network_s_own_loss():
    """With all classes and temperature 1 the loss is F.kl_div of PyTorch on the counted rows."""
    student, teacher, counted = drawn(1)
    found = token_loss(student, teacher.log_softmax(-1), Positions(counted), OBJECTIVES["kl"], 1.0)
    rows = student.log_softmax(-1)[counted], teacher.log_softmax(-1)[counted]
    assert torch.allclose(found, F.kl_div(*rows, log_target=True, reduction="batchmean"))


def test_a_problem_knows_its_positions():
    settings = LearnedSettings(examples=6, top_k=2)
    problem = learned.prepare(world().task_vectors, world().tasks, settings)
    assert [p.counted.shape for p in problem.positions] == [(6, LENGTH)] * 2
    assert [tuple(s.shape) for s in problem.teacher_scores] == [(6, LENGTH, 3)] * 2
    index = torch.tensor([1, 4])
    share = problem.share(0, index, torch.arange(6))
    counted = problem.positions[0].counted
    assert share == pytest.approx(float(counted[index].sum() / counted.sum()))
    assert replace(problem, positions=()).share(0, index, torch.arange(6)) == pytest.approx(2 / 6)
