"""``--device``: a whole report on a second device, where a tensor left behind on the CPU raises."""

import pytest
import torch

from bounds.types import InputError, Sample
from diagnostics.report import build
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge
from merging.execution import check_device
from merging.plain import to_plain
from merging.suites import Suite, mini8, toy
from tests.elsewhere import NAME, elsewhere

FEW = ("accuracy", "bound", "certificates")
SMALL = Settings(held_out=8, kernel=4, train=8, draws=4, points=3, control_points=2, gram=2, hessian=4)


def report(suite, artifact, device, sections=()):
    workspace = Workspace([Subject("m", "m.pt", artifact)], lambda: suite, SMALL, Cache(None), device=device)
    return build(workspace, sections)


def numbers(value, path=""):
    """Every number of a report with its place."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in numbers(part, f"{path}.{name}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in numbers(part, f"{path}[{i}]").items()}
    return {path: value} if isinstance(value, float) else {}


def plain(result):
    return numbers(to_plain(result.merges))


def test_a_tensor_left_behind_is_found():
    with elsewhere() as device, pytest.raises(RuntimeError, match="two devices"):
        _ = torch.ones(3, device=device) + torch.ones(3)


def test_a_report_on_another_device_says_the_same():
    suite = toy.build(overlap=0.3)
    artifact = merge(
        "samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=5, examples=8
    )
    here = plain(report(suite, artifact, "cpu"))
    with elsewhere() as device:
        assert check_device(device) == NAME
        there = plain(report(suite, artifact, device))
    assert there.keys() == here.keys()
    assert len(here) > 500
    for place, value in here.items():
        assert there[place] == pytest.approx(value, rel=1e-6, abs=1e-9), place


def test_the_shipped_suite_on_another_device():
    """One task of ``mini8``, a few examples: the head and the pixels follow the weights."""
    whole = mini8.load()
    vectors = type(whole.task_vectors)(whole.task_vectors.base, whole.task_vectors.deltas[5:6], ("a",))
    tasks = []
    for task, name in zip(whole.tasks[5:6], vectors.names, strict=True):
        few = {split: _few(getattr(task, split)) for split in ("train", "calibration", "validation", "test")}
        tasks.append(type(task)(name, task.forward, task.class_names, **few))
    suite = Suite("mini8", vectors, tasks, sources={})
    artifact = merge("average", vectors, tasks, suite="mini8")
    here = plain(report(suite, artifact, "cpu", FEW))
    with elsewhere() as device:
        there = plain(report(suite, artifact, device, FEW))
    assert there.keys() == here.keys()
    for place, value in here.items():
        assert there[place] == pytest.approx(value, rel=1e-2, abs=1e-4), place


def _few(sample: Sample) -> Sample:
    return sample.take(slice(9))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "abacus"])
def test_a_device_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(InputError, match="device: expected a device of this machine") as refused:
        check_device(device)
    assert "\n" not in str(refused.value)
