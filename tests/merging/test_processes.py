"""Several processes on gloo: the coefficients of one, few bytes, and every process ends with the cause of a failure."""

import dataclasses
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bounds.types import InputError
from merging import merge
from merging.artifact import load
from merging.execution import Execution
from merging.learned.objectives import OBJECTIVES, teacher_kl
from merging.processes import Processes, local_device, processes
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


@pytest.mark.parametrize("sharded", [False, True])
def test_the_signal_by_which_torchrun_ends_a_process_is_told_in_a_line(sharded):
    def work(joined):
        tasks = broken_tasks(lambda: os.kill(os.getpid(), signal.SIGTERM)) if joined.rank == 3 else None
        return learned(joined, tasks, sharded=sharded)

    for text in together(work, 4):
        assert text.startswith("InputError: process 3 of 4: expected to go on to the end; got SIGTERM")
        assert text.count("process 3") == 1
        assert "--resume" in text


def test_the_signal_is_what_it_was_after_good_work_and_ignored_while_an_error_is_told():
    """As torchrun ends the others: after the error of the work, before the line is printed."""

    def told(fail):
        try:
            with processes():
                during = signal.getsignal(signal.SIGTERM)
                if fail:
                    raise InputError("of the work")
        except InputError as error:
            os.kill(os.getpid(), signal.SIGTERM)
            return callable(during), str(error)
        return callable(during), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert together(lambda _: told(False), join=False) == [(True, True)] * 2
    assert together(lambda _: told(True), join=False) == [(True, "of the work")] * 2


MODULE = """
import dataclasses, os, signal
from merging.suites import toy

CALLS = []

def suite():
    made = toy.build(overlap=0.5)
    return dataclasses.replace(made, tasks=[dataclasses.replace(t, forward=ending(t.forward)) for t in made.tasks])

def ending(forward):
    def scores(params, inputs):
        CALLS.append(1)
        if os.environ["RANK"] == os.environ.get("KILLED") and len(CALLS) == 80:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(params, inputs)

    return scores
"""
"""A suite whose network kills one of the processes in the middle of a merge."""


def torchrun(folder: Path, *arguments: str, **environment: str) -> dict[str, str]:
    """Run the command of a merge in two processes in ``folder``; return what each said on stderr, by its rank."""
    root = Path(__file__).resolve().parents[2]
    logs = folder / "logs"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--log-dir", str(logs)]
    settings = [text for name, value in {**SETTINGS, "steps": 30}.items() for text in (f"--{name}", str(value))]
    kept = ["--suite", "killed_for_tests:suite", *settings, "--checkpoint-every", "2", "--no-table"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    whole = [sys.executable, *command, "--redirects", "3", "-m", "merging", *kept, *arguments]
    done = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    said = {path.parent.name: path.read_text() for path in sorted(logs.rglob("stderr.log"))}
    assert len(said) == 2, done.stderr
    shutil.rmtree(logs)
    return said


def killed_in_the_middle(rank: int, folder: Path, *options: str) -> None:
    """Run the command with a process that kills itself; check what the other says and what is left."""
    (folder / "killed_for_tests.py").write_text(MODULE)
    said = torchrun(folder, *options, KILLED=str(rank))
    assert "error" not in said[str(rank)]
    *progress, line = said[str(1 - rank)].splitlines()
    assert all(text.endswith((" …", " s")) for text in progress), "what goes on, and how long it took"
    assert re.match(f"error: process {1 - rank} of 2: expected (an answer of every process|to go on to the end)", line)
    assert f"last good steps are in {folder / 'out.pt.checkpoint'} (--resume)" in line
    assert sorted(path.name for path in folder.iterdir()) == ["killed_for_tests.py", "out.pt.checkpoint"]
    assert 0 < torch.load(folder / "out.pt.checkpoint", weights_only=True)["steps"] < 30


def test_a_process_killed_under_torchrun_ends_the_one_that_writes(tmp_path):
    killed_in_the_middle(1, tmp_path)


def test_what_a_process_killed_under_torchrun_has_left_is_gone_on_from_to_the_same_bits(tmp_path):
    killed_in_the_middle(0, tmp_path, "--sharded")
    assert "error" not in "".join(torchrun(tmp_path, "--sharded", "--resume").values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed_for_tests.py", "out.pt"]
    found = load(tmp_path / "out.pt").coefficients
    assert found is not None
    for coefficients, _, _ in together(lambda joined: learned(joined, sharded=True, steps=30)):
        assert found.tolist() == coefficients


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
