"""Checkpoints: a resumed merge gives the very bits of an uninterrupted one, wherever it was killed."""

import os
import random
import signal
import sys

import pytest
import torch

from bounds.types import InputError
from merging import Task, learned, merge, records
from merging.artifact import load
from merging.commands.merge import main
from merging.execution import Execution
from merging.files import write
from merging.learned import checkpoint
from merging.suites import toy

STEPS = 40
SETTINGS = {"steps": STEPS, "examples": 16, "batch": 4}


def run(path=None, *, every=1, resume=False, **settings) -> torch.Tensor:
    suite = toy.build(overlap=0.5)
    execution = Execution(checkpoint=path, every=every, resume=resume)
    result = merge("samerging", suite.task_vectors, suite.tasks, execution=execution, **{**SETTINGS, **settings})
    assert result.coefficients is not None
    assert len(result.history["loss"]) == {**SETTINGS, **settings}["steps"]
    return result.coefficients


@pytest.mark.parametrize(
    "settings",
    [{}, {"perturbation": "momentum"}, {"perturbation": "random"}, {"average": "ema"}, {"optimizer": "sgd"}],
)
def test_stopped_and_resumed_is_the_same_run(tmp_path, settings):
    path = tmp_path / "out.pt.checkpoint"
    run(path, every=7, **{**settings, "steps": 24})  # the last checkpoint is of step 21
    assert torch.equal(run(path, every=7, resume=True, **settings), run(**settings))


def test_a_schedule_goes_on_where_it_stopped_and_not_with_other_steps(tmp_path):
    path, whole = tmp_path / "out.pt.checkpoint", run(schedule="cosine")
    suite = toy.build(overlap=0.5)
    settings = learned.LearnedSettings(steps=STEPS, examples=16, batch=4, schedule="cosine")
    problem = learned.prepare(suite.task_vectors, suite.tasks, settings, Execution(checkpoint=path))
    state = learned.init(problem)
    for _ in range(11):
        learned.update(problem, state)
    checkpoint.save(problem, state)
    kept = path.read_bytes()
    assert torch.equal(run(path, resume=True, schedule="cosine"), whole)
    path.write_bytes(kept)
    with pytest.raises(InputError, match="steps"):
        run(path, resume=True, schedule="cosine", steps=STEPS + 1)


def counting(act, moment=0):
    """Return a profiler that acts at the ``moment``-th call or return, of Python or of C, and the list of its count."""
    count = [0]

    def profile(*_):
        count[0] += 1
        if count[0] == moment:
            act()

    return profile, count


def test_killed_at_thirty_random_moments_nothing_is_lost(tmp_path):
    """A child kills itself in the middle of its work; the next goes on. Every checkpoint in between must be readable.

    Moments are counted in calls, not in seconds: they are the same on a fast machine and on a busy one.
    """
    path, expected, moments = tmp_path / "out.pt.checkpoint", run(), random.Random(0)
    profile, whole = counting(lambda: None)
    sys.setprofile(profile)
    run(tmp_path / "counted")
    sys.setprofile(None)
    (tmp_path / "counted").unlink()
    killed = 0
    for _ in range(30):
        moment = moments.randint(1, whole[0] // 4)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sys.setprofile(counting(lambda: os.kill(os.getpid(), signal.SIGKILL), moment)[0])
                run(path, resume=True)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if path.exists():
            assert torch.load(path, weights_only=True)["schema"]
            if torch.load(path, weights_only=True)["steps"] == STEPS:
                assert torch.equal(run(path, resume=True), expected)
                path.unlink()
        assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} <= {path.name}
    assert killed > 20
    assert torch.equal(run(path, resume=True), expected)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "a killed run's file is left"


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    suite, path, calls = toy.build(), tmp_path / "c", []

    def broken(params, inputs):
        calls.append(1)
        return suite.tasks[1].forward(params, inputs) * (float("nan") if len(calls) > 9 else 1.0)

    task = suite.tasks[1]
    splits = {"train": task.train, "calibration": task.calibration, "validation": task.validation, "test": task.test}
    tasks = [suite.tasks[0], Task("task1", broken, task.class_names, **splits), suite.tasks[2]]
    with pytest.raises(InputError, match=r"loss of task 'task1' at step 8: .*last good steps are in .*--resume"):
        merge(
            "samerging",
            suite.task_vectors,
            tasks,
            execution=Execution(checkpoint=path, every=3),
            steps=20,
            examples=8,
            perturbation="none",
        )
    kept = torch.load(path, weights_only=True)
    assert kept["steps"] == 6
    assert bool(torch.isfinite(kept["coefficients"]).all())


def test_an_earlier_checkpoint_is_neither_lost_nor_mixed_up(tmp_path):
    path = tmp_path / "c"
    run(path, steps=5)
    content = path.read_bytes()
    for settings, message in (
        ({}, "add --resume to go on"),
        ({"resume": True, "seed": 1}, "settings"),
        ({"resume": True, "rho": 0.2}, "settings"),
    ):
        with pytest.raises(InputError, match=message):
            run(path, **settings)
    assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut short"):
        run(path, resume=True)
    write(path, lambda file: torch.save({"schema": "other"}, file))
    with pytest.raises(InputError, match=r"expected schema mergebound\.checkpoint/2; got other"):
        run(path, resume=True)
    with pytest.raises(InputError, match="the file of a checkpoint"):
        run(None, resume=True)
    with pytest.raises(InputError, match="at least 1 step"):
        run(path, every=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": torch.zeros(3, 1)}, "coefficients: expected torch.float64"),
        ({"coefficients": [0.5]}, "coefficients: expected an instance of Tensor; got a list"),
        ({"generator": torch.zeros(8, dtype=torch.uint8)}, "generator: expected torch.uint8"),
        ({"memory": {"average": torch.tensor(float("inf"))}}, "average: expected finite numbers"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "optimizer: expected the state of Adam"),
        ({"history": {}}, "history: expected 5 steps"),
        ({"steps": 4}, "history: expected 4 steps"),
        ({"chosen": []}, "calibration: expected the same examples"),
    ],
)
def test_a_checkpoint_that_no_run_has_written_is_refused(tmp_path, change, message):
    path = tmp_path / "c"
    run(path, steps=5)
    content = torch.load(path, weights_only=True)
    records.save(path, {name: value for name, value in {**content, **change}.items() if name != records.DIGEST})
    with pytest.raises(InputError, match=message):
        run(path, resume=True)


def test_a_changed_bit_in_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    run(path, steps=5)
    whole, lam = path.read_bytes(), torch.load(path, weights_only=True)["coefficients"]
    at = whole.index(lam.numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match="expected the content that was written"):
        run(path, resume=True)


def test_the_command_resumes_and_clears_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--suite", "toy", "--examples", "8", "--checkpoint-every", "2"]
    assert main([*arguments, "--steps", "7", "--out", "straight.pt"]) == 0
    suite = toy.build()
    execution = Execution(checkpoint=tmp_path / "out.pt.checkpoint", every=2)
    merge("samerging", suite.task_vectors, suite.tasks, execution=execution, examples=8, steps=5)
    assert main([*arguments, "--steps", "7"]) == 2, "a checkpoint is there and --resume was not given"
    assert main([*arguments, "--steps", "7", "--resume"]) == 0
    left, right = load("straight.pt").coefficients, load("out.pt").coefficients
    assert left is not None
    assert right is not None
    assert torch.equal(left, right)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pt", "straight.pt"]


def test_what_a_method_cannot_follow_is_refused(tmp_path):
    suite = toy.build()
    for execution, message in (
        (Execution(autocast="bfloat16"), "autocast of average"),
        (Execution(resume=True), "resume of average"),
    ):
        with pytest.raises(InputError, match=message):
            merge("average", suite.task_vectors, suite.tasks, execution=execution)
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(InputError, match="device: expected"):
            Execution(device=device)
