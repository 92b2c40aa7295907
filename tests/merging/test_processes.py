"""Two processes on gloo: the coefficients of one, few bytes, and every process ends with the cause of a failure."""

import dataclasses
import os

import pytest
import torch

from merging import merge
from merging.execution import Execution
from merging.processes import local_device
from merging.suites import toy
from tests.joined import together

SETTINGS = {"steps": 6, "examples": 16, "batch": 4}


def learned(joined=None, tasks=None, **settings):
    suite = toy.build(overlap=0.5)
    execution = Execution() if joined is None else Execution(processes=joined)
    result = merge("samerging", suite.task_vectors, tasks or suite.tasks, execution=execution, **SETTINGS, **settings)
    assert result.coefficients is not None
    return result.coefficients.tolist(), result.history["bytes_sent"]


@pytest.mark.parametrize(
    "perturbation", ["coefficients", "weights", "friendly", "random", "ggn-trace", "random-weights"]
)
def test_two_processes_learn_the_coefficients_of_one(perturbation):
    expected, sent = learned(perturbation=perturbation)
    assert set(sent) == {0}
    results = together(lambda joined: learned(joined, perturbation=perturbation))
    for coefficients, _ in results:
        assert torch.allclose(torch.tensor(coefficients), torch.tensor(expected), atol=1e-6, rtol=0)
    assert results[0][0] == results[1][0]


def test_only_gradients_in_lambda_and_a_few_scalars_travel():
    (_, sent), _ = together(learned)
    tasks, tensors, passes = 3, 2, 2
    assert sent == [8 * passes * (tasks * tensors + tasks + 1)] * SETTINGS["steps"]


def broken_tasks(fail):
    suite = toy.build(overlap=0.5)
    task, calls = suite.tasks[1], []

    def forward(params, inputs):
        calls.append(1)
        if len(calls) > 3:
            fail()
        return task.forward(params, inputs)

    return [suite.tasks[0], dataclasses.replace(task, forward=forward), suite.tasks[2]]


def test_a_failure_in_one_process_ends_all_with_its_cause():
    results = together(lambda joined: learned(joined, broken_tasks(lambda: 1 // 0)))
    assert results[0].startswith("InputError: process 1 of 2: ")
    assert "division" in results[0]
    assert results[1].startswith("ZeroDivisionError")


def test_a_process_that_is_gone_ends_the_others():
    def work(joined):
        return learned(joined, broken_tasks(lambda: os._exit(1)))

    results = together(work)
    assert results[1] is None
    assert results[0].startswith("InputError: process 0 of 2: expected an answer of every process")
    assert "--resume" in results[0]


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
