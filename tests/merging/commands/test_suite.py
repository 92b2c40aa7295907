"""``suite init`` and ``suite check``: what a template holds, and what a probe finds."""

import dataclasses
import math
import sys
from typing import Any

import pytest
import torch
from rich.console import Console

from bounds.types import InputError, Sample
from merging.commands.merge import main as merging
from merging.commands.suite import main, probe, table
from merging.models import KINDS
from merging.suites import Suite, toy
from tests.sequences_world import world


@pytest.mark.parametrize("kind", KINDS)
def test_init_writes_a_file_once(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--kind", kind, "--out", "my.yaml"]) == 0
    text = (tmp_path / "my.yaml").read_text()
    assert f"kind: {kind}" in text
    assert main(["init", "--kind", kind, "--out", "my.yaml"]) == 2
    assert "expected a new file; got one that is there" in capsys.readouterr().err
    assert (tmp_path / "my.yaml").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["init", "--kind", "bert"], "--kind: expected hf_clip or"),
        (["bake"], "suite command: expected init or check"),
        ([], "suite command: expected init or check"),
        (["check", "toy", "--examples", "0"], "--examples: expected at least 1"),
        (["check", "none.yaml"], "suite file none.yaml: expected a file; got nothing there"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert match in capsys.readouterr().err


def test_check_of_a_shipped_suite(capsys):
    assert merging(["suite", "check", "toy"]) == 0
    shown = capsys.readouterr().out
    assert "toy: 3 experts can be merged" in shown
    assert "look at" not in shown


def changed(**fields: Any) -> Suite:
    suite = toy.build()
    return dataclasses.replace(suite, tasks=[suite.tasks[0].changed(**fields), *suite.tasks[1:]])


def warned(suite: Suite) -> str:
    return " ".join(probe(suite, 0, 100).warnings)


def test_what_looks_wrong_is_told():
    suite = toy.build()
    task = suite.tasks[0]
    labels = task.test.labels
    assert labels is not None
    assert warned(suite) == ""
    shuffled = Sample(task.test.inputs, (labels + 1) % 3)
    assert "labels in another order" in warned(changed(test=shuffled))
    assert "uniform although it is right" in warned(changed(forward=lambda p, x: 0.01 * task.forward(p, x)))
    assert "applied twice" in warned(changed(forward=lambda p, x: 1e4 * task.forward(p, x)))
    two = torch.nonzero(labels != 2).flatten()
    assert "classes without a test example: [2]" in warned(changed(test=task.test.take(two)))
    assert "no split train or validation" in warned(changed(train=None, validation=None))


def test_scores_that_change_from_call_to_call_are_refused():
    forward = toy.build().tasks[0].forward
    noisy = changed(forward=lambda p, x: forward(p, x) + torch.rand(1, dtype=torch.float64))
    with pytest.raises(InputError, match=r"expected the same numbers twice; got a difference of"):
        probe(noisy, 0, 100)


def test_options_of_the_merge_reach_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    method = ["--suite", "toy", "--method", "average"]
    assert merging([*method, "--only", "first.*", "--running-statistics", "base", "--out", "a.pt"]) == 0
    assert merging([*method, "--except", "nothing.*", "--out", "b.pt"]) == 2
    assert "pattern 'nothing.*': expected one that names a tensor" in capsys.readouterr().err
    content = torch.load("a.pt", weights_only=True)
    assert content["selection"] == {"only": ["first.*"], "except": [], "running_statistics": "base"}
    assert content["origin"] == "toy"
    assert sys.path, "the working folder was not lost"


def test_a_suite_without_labels_is_probed_without_accuracies():
    found = probe(toy.build().without_labels(), 0, 16)
    assert found.pretrained is None
    assert found.expert is None
    assert found.warnings == ("no labels in train or validation or test: what needs it will say so",)
    assert found.spread == probe(toy.build(), 0, 16).spread


def test_a_suite_with_a_label_at_every_token_is_probed_by_perplexity():
    suite = world()
    found = probe(suite, 0, 5)
    few = suite.tasks[0].test.take(slice(5))
    assert few.labels is not None
    for params, figure in ((suite.task_vectors.base, found.pretrained), (suite.task_vectors.expert(0), found.expert)):
        scores = suite.tasks[0].forward(params, few.inputs)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), few.labels.flatten())
        assert figure == pytest.approx(float(loss.exp()))
    counted = few.labels != -100
    p = suite.tasks[0].forward(suite.task_vectors.expert(0), few.inputs).softmax(-1)[counted]
    assert found.entropy == pytest.approx(float(-(p * p.log()).sum(1).mean()) / math.log(11))
    assert found.warnings == ()
    swapped = dataclasses.replace(suite, tasks=[suite.tasks[0].changed(test=suite.tasks[1].test), suite.tasks[1]])
    assert "no better than the pretrained model" in warned(swapped)
    noisy = suite.tasks[0].changed(forward=lambda p, x: suite.tasks[0].forward(p, x) + torch.rand(1).double())
    with pytest.raises(InputError, match="expected the same numbers twice"):
        probe(dataclasses.replace(suite, tasks=[noisy, suite.tasks[1]]), 0, 5)
    shown = Console(width=160)
    with shown.capture() as capture:
        shown.print(table(suite, [found, probe(suite, 1, 5)]))
    assert "expert perplexity" in capture.get()
    assert f"{found.expert:.2f}" in capture.get()
