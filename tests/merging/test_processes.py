"""Several processes on gloo: the coefficients of one, few bytes, and every process ends with the cause of a failure."""

import dataclasses
import functools
import os
import signal
from typing import Any

import pytest
import torch

from bounds.types import InputError
from merging import merge
from merging.execution import Execution
from merging.learned.objectives import OBJECTIVES, teacher_kl
from merging.processes import Processes, local_device
from merging.suites import toy
from tests.joined import together

SETTINGS = {"steps": 3, "examples": 16, "batch": 4}
CASES: list[dict[str, Any]] = [
    {"perturbation": "coefficients"},
    {"perturbation": "weights"},
    {"perturbation": "ggn-trace"},
    {"perturbation": "random"},
    {"perturbation": "random-weights"},
    {"perturbation": "friendly", "reduction": "sum", "optimizer": "sgd"},
    {"perturbation": "weights", "batch": 3, "objective": "squared"},
    {"perturbation": "coefficients", "batch": 1, "cached": 2},
    {"perturbation": "none", "batch": 40, "objective": "entropy"},
]
"""Among them batches that 3 or 4 processes do not divide, with fewer examples than processes, and with more than k."""


build = functools.cache(toy.build)
"""Processes are forked from one that has the suites."""


def learned(joined=None, tasks=None, *, of=3, sharded=False, method="samerging", dtype=torch.float64, **settings):
    suite = build(overlap=0.5, dtype=dtype)
    vectors = suite.task_vectors.of_experts(suite.task_vectors.names[:of])
    execution = Execution(sharded=sharded) if joined is None else Execution(processes=joined, sharded=sharded)
    given = {**SETTINGS, **settings}
    result = merge(method, vectors, (tasks or suite.tasks)[:of], execution=execution, **given)
    coefficients = None if result.coefficients is None else result.coefficients.tolist()
    return coefficients, result.history, {name: value.tolist() for name, value in result.merged.items()}


def near(found, expected, tolerance):
    return torch.allclose(*(torch.tensor(v, dtype=torch.float64) for v in (found, expected)), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("size", "of"), [(2, 3), (4, 2), (3, 2)])
def test_several_processes_learn_the_coefficients_of_one(size, of):
    expected = [learned(of=of, **case) for case in CASES]

    def work(joined):
        return [learned(joined, of=of, sharded=sharded, **case)[:2] for case in CASES for sharded in (False, True)]

    results = together(work, size)
    for found in results:
        for number, (coefficients, history) in enumerate(found):
            one, alone, _ = expected[number // 2]
            assert near(coefficients, one, 1e-9), (CASES[number // 2], number % 2)
            assert history["passes"] == alone["passes"]
            assert near(history["loss"], alone["loss"], 1e-9)
            assert coefficients == results[0][number][0]


@pytest.mark.parametrize("sharded", [False, True])
def test_in_float32_and_for_a_layer_of_its_own_several_processes_agree_within_1e_6(sharded):
    cases: list[dict[str, Any]] = [{"dtype": torch.float32}, {"method": "symerge"}, {"method": "adamerging++"}]
    expected = [learned(of=2, **case)[2] for case in cases]
    for found in together(lambda joined: [learned(joined, of=2, sharded=sharded, **case)[2] for case in cases], 4):
        for weights, one in zip(found, expected, strict=True):
            assert all(near(weights[name], one[name], 1e-6) for name in one)


@pytest.mark.parametrize(("size", "of"), [(4, 2), (3, 2)])
def test_a_mean_that_is_not_weighted_by_its_examples_is_seen(size, of, monkeypatch):
    expected, alone, _ = learned(of=of, optimizer="sgd")
    monkeypatch.setitem(OBJECTIVES, "kl", lambda s, t, u: teacher_kl(s, t, u) * SETTINGS["batch"] / len(s))
    for coefficients, history, _ in together(lambda joined: learned(joined, of=of, optimizer="sgd"), size):
        assert not near(coefficients, expected, 1e-4)
        assert history["loss"][0] > 1.5 * alone["loss"][0]


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("tasks", range(1, 6))
def test_the_examples_of_all_tasks_are_divided_evenly(size, tasks):
    processes = [Processes(rank, size) for rank in range(size)]
    met = {(rank, task): False for rank in range(size) for task in range(tasks)}
    for count in range(1, 25):
        taken = [[list(range(count))[one.share(task, tasks, count)] for task in range(tasks)] for one in processes]
        for task in range(tasks):
            assert [one for of in taken for one in of[task]] == list(range(count))
        sizes = [sum(map(len, of)) for of in taken]
        assert max(sizes) - min(sizes) <= 1
        for rank, task in met:
            met[rank, task] |= bool(taken[rank][task])
    assert met == {(rank, task): processes[rank].serves(task, tasks) for rank, task in met}


@pytest.mark.parametrize(("size", "of"), [(2, 3), (4, 2)])
def test_only_gradients_in_lambda_and_a_few_scalars_travel(size, of):
    tensors, passes = 2, 2
    for _, history, _ in together(lambda joined: learned(joined, of=of), size):
        assert history["bytes_sent"] == [8 * passes * (of * tensors + of + 1)] * SETTINGS["steps"]


def test_sharded_weights_and_their_gradients_travel_once():
    of, tensors, passes, size = 2, 2, 2, 4
    weights = sum(value.numel() for value in build(overlap=0.5).task_vectors.base.values())
    assert weights % size == 0
    small = 8 * (of * tensors + of + 3)
    for _, history, _ in together(lambda joined: learned(joined, of=of, sharded=True), size):
        assert history["bytes_sent"] == [passes * (small + 8 * weights * 2 * (size - 1) / size)] * SETTINGS["steps"]


def test_methods_that_cannot_share_their_examples_say_so():
    suite = build(overlap=0.5)

    def work(joined):
        merge("tangent", suite.task_vectors, suite.tasks, execution=Execution(processes=joined))

    for text in together(work):
        assert text.startswith("InputError: processes of tangent: expected none")


def test_sharded_weights_need_other_processes():
    with pytest.raises(InputError, match="sharded: expected several processes; got one"):
        Execution(sharded=True)


def broken_tasks(fail):
    """Tasks of which the last fails after some passes; of 4 processes the third and the fourth serve it."""
    suite = build(overlap=0.5)
    task, calls = suite.tasks[2], []

    def forward(params, inputs):
        calls.append(1)
        if len(calls) > 3:
            fail()
        return task.forward(params, inputs)

    return [*suite.tasks[:2], dataclasses.replace(task, forward=forward)]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_failure_in_one_process_ends_all_with_its_cause(sharded):
    def work(joined):
        tasks = broken_tasks(lambda: 1 // 0) if joined.rank == 3 else None
        return learned(joined, tasks, sharded=sharded)

    *others, failed = together(work, 4)
    for text in others:
        assert text.startswith("InputError: process 3 of 4: ")
        assert "division" in text
    assert failed.startswith("ZeroDivisionError")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_process_that_is_gone_ends_the_others(sharded):
    def work(joined):
        tasks = broken_tasks(lambda: os.kill(os.getpid(), signal.SIGKILL)) if joined.rank == 3 else None
        return learned(joined, tasks, sharded=sharded)

    *others, gone = together(work, 4)
    assert gone is None
    for rank, text in enumerate(others):
        assert text.startswith(f"InputError: process {rank} of 4: expected an answer of every process")
        assert "--resume" in text


def test_a_checkpoint_of_one_process_is_gone_on_from_by_four(tmp_path):
    suite = build(overlap=0.5)

    def run(steps, resume=False, **execution):
        kept = Execution(checkpoint=tmp_path / "kept", every=2, resume=resume, **execution)
        given = {**SETTINGS, "steps": steps, "perturbation": "friendly"}
        coefficients = merge("samerging", suite.task_vectors, suite.tasks, execution=kept, **given).coefficients
        assert coefficients is not None
        return coefficients.tolist()

    run(2)
    expected, _, _ = learned(perturbation="friendly")
    for coefficients in together(lambda joined: run(SETTINGS["steps"], resume=True, processes=joined), 4):
        assert near(coefficients, expected, 1e-9)


def test_work_in_turn_is_done_by_the_first_process_first(tmp_path):
    def work(joined):
        def once():
            first = not (tmp_path / "file").exists()
            (tmp_path / "file").touch()
            return first

        return joined.in_turn(once), joined.broadcast(joined.rank), joined.gather(lambda: joined.rank)

    assert together(work) == [(True, 0, [0, 1]), (False, 0, [0, 1])]


def test_each_process_of_a_machine_takes_a_device_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [local_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]
