"""report(artifact, suite): the same numbers as the command, and sections that fail alone."""

import dataclasses
import json

import pytest
import torch

from bounds.types import InputError, Sample
from diagnostics import report
from diagnostics.bound_report import main
from diagnostics.report import build
from diagnostics.settings import Settings
from merging import merge
from merging.artifact import save
from merging.suites import Suite, toy
from tests.sequences_world import world as sequences

SMALL = Settings(held_out=4, kernel=4, train=4, draws=4, points=3, control_points=2, resamples=10, gibbs_draws=1)


def without(suite: Suite, *splits: str) -> Suite:
    tasks = [task.changed(**dict.fromkeys(splits)) for task in suite.tasks]
    return Suite(suite.name, suite.task_vectors, tasks, sources=suite.sources)


def test_one_call_makes_the_page(tmp_path):
    suite = toy.build()
    found = report(merge("average", suite), suite, settings=SMALL, sections=("accuracy", "certificates"))
    page = found.save(tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (
        content["merges"][0]["accuracy"]["tasks"][0]["accuracy"]["merged"]
        == found.data.merges[0].accuracy.tasks[0].accuracy["merged"]
    )
    assert callable(build), "the module of the same name is there, too"
    two = {"a": merge("average", suite), "b": merge("task_arithmetic", suite, scale=0.3)}
    assert [m.label for m in report(two, suite, settings=SMALL, sections=("accuracy",)).data.merges] == ["a", "b"]
    with pytest.raises(InputError, match="artifacts: expected at least one"):
        report({}, suite)


def test_absent_splits_cost_their_sections_only():
    suite = without(toy.build(), "train", "validation", "calibration")
    made = report(merge("average", suite), suite, settings=SMALL).data
    (merge_,) = made.merges
    assert merge_.accuracy is not None
    assert merge_.distillation is not None
    assert merge_.bound is None
    assert merge_.certificates is None
    reasons = made.provenance.missing
    assert "expected the split train of every task; got none in task 'task0'" in reasons["average: bound"]
    assert "expected the split validation of every task" in reasons["average: certificates"]
    with pytest.raises(InputError, match="certificates: expected the split validation"):
        report(merge("average", suite), suite, settings=SMALL, sections=("certificates",))


def test_a_section_that_fails_is_named_and_the_others_are_there(monkeypatch):
    suite = toy.build()

    def fails(*_: object) -> object:
        raise RuntimeError("vmap:\n cannot")

    monkeypatch.setattr("diagnostics.sections.entk.trace", fails, raising=False)
    monkeypatch.setattr("diagnostics.sections.heterogeneity.heterogeneity", fails)
    made = report(merge("average", suite), suite, settings=SMALL, sections=("accuracy", "heterogeneity")).data
    assert made.merges[0].accuracy is not None
    assert made.merges[0].heterogeneity is None
    assert made.provenance.missing["average: heterogeneity"] == "RuntimeError: vmap: cannot"


def test_a_merge_of_another_suite_ends_the_report():
    suite, other = toy.build(), toy.build(seed=1)
    artifact = merge("average", suite)
    strange = Suite("toy", other.task_vectors, other.tasks[:2] and other.tasks, sources={"toy": "seed 1"})
    with pytest.raises(InputError, match="artifact's sources"):
        report(artifact, strange, settings=SMALL, sections=("accuracy",))


def test_scores_that_are_not_finite_end_a_report_of_nothing_else():
    suite = toy.build()
    task = suite.tasks[0]
    bad = task.changed(test=Sample(torch.full_like(task.test.inputs, torch.nan), task.test.labels))  # pyright: ignore
    broken = Suite(suite.name, suite.task_vectors, [bad, *suite.tasks[1:]], sources=suite.sources)
    with pytest.raises(InputError, match="expected finite numbers; got NaN or infinity"):
        report(merge("average", broken), broken, settings=SMALL, sections=("accuracy",))


def test_heads_that_were_trained_are_told_in_the_ledger():
    suite = toy.build()
    learned = dataclasses.replace(suite, learned_heads={"task0"})
    for world, expected in ((suite, "θ_0, heads, blocks"), (learned, "not so for task0")):
        found = report(merge("average", world), world, settings=SMALL, sections=("accuracy",)).data
        ledger = " ".join(f"{line.name} {line.value}" for line in found.assumptions)
        assert expected in ledger
        assert ("heads independent" in ledger) == (world is learned)


def test_a_suite_with_scores_at_every_position_is_reported_by_the_command(tmp_path, capsys):
    suite = sequences().found_by("tests.sequences_world:suite")
    save(merge("average", suite), tmp_path / "a.pt")
    arguments = ["--merged", str(tmp_path / "a.pt"), "--out", str(tmp_path / "report"), "--workers", "1"]
    assert main([*arguments, "--sections", "accuracy"]) == 2
    assert "got accuracy, for tasks with one row of scores for every position" in capsys.readouterr().err
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "hurt below pretrained. A token of the test texts costs the merge" in shown
    assert "not computed: sweep: it needs one row of scores for each example" in shown
