"""What a report says without labels: numbers against direct computations on ``toy``, and that no label is read."""

import dataclasses
import math

import pytest
import torch

from bounds.types import Sample
from diagnostics import report
from diagnostics.settings import Settings
from merging import merge
from merging.suites import Suite, toy

SMALL = Settings(held_out=4, kernel=4, train=4, draws=4, points=3, control_points=2, resamples=10, gibbs_draws=1)
BARE = dataclasses.replace(SMALL, labels=False)
NEED_LABELS = ("accuracy", "bound", "heterogeneity", "flatness", "certificates", "sweep")


class Poison(torch.Tensor):
    """Labels that may not be looked at."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("a label was read")


def poisoned(suite: Suite) -> Suite:
    """The suite with labels, of every split, that raise when anything looks at them."""
    for task in suite.tasks:
        for split in ("train", "validation", "test"):
            sample = getattr(task, split)
            object.__setattr__(sample, "labels", sample.labels.as_subclass(Poison))
    return suite


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.5)


@pytest.fixture(scope="module")
def artifact(suite):
    return merge("average", suite)


@pytest.fixture(scope="module")
def bare(suite, artifact):
    return report(artifact, suite, settings=BARE).data


def section(artifact, suite, settings=SMALL, **options):
    return report(artifact, suite, settings=settings, sections=("label_free",), **options).data.merges[0].label_free


def probabilities(suite, index, theta, split):
    task = suite.tasks[index]
    return torch.softmax(task.forward(theta, getattr(task, split).inputs), dim=1)


def test_numbers_follow_from_the_probabilities(suite, artifact):
    found = section(artifact, suite)
    for index, row in enumerate(found.tasks):
        teacher, student = suite.task_vectors.expert(index), artifact.merged
        wrong, doubt = {}, {}
        for split in ("test", "validation"):
            p, q = (probabilities(suite, index, theta, split) for theta in (teacher, student))
            chosen = q.argmax(dim=1)
            doubt[split] = 1 - p[torch.arange(len(p)), chosen]
            wrong[split] = (chosen != getattr(suite.tasks[index], split).labels).double()
        p, q = (probabilities(suite, index, theta, "test") for theta in (teacher, student))
        assert row.total_variation.value == pytest.approx(float((p - q).abs().sum(1).mean() / 2))
        assert row.divergence.value == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
        assert row.disagreement.value == pytest.approx(float((p.argmax(1) != q.argmax(1)).double().mean()))
        assert row.expected_error.value == pytest.approx(float(doubt["test"].mean()))
        rectifier = wrong["validation"] - doubt["validation"]
        assert row.rectifier.value == pytest.approx(float(rectifier.mean()))
        assert row.rectified.value == pytest.approx(float(doubt["test"].mean() + rectifier.mean()))
        variance = float(doubt["test"].var() / 48 + rectifier.var() / 30)
        assert row.rectified.stderr == pytest.approx(math.sqrt(variance))
        assert row.validation_error.value == pytest.approx(float(wrong["validation"].mean()))
        assert row.test_error.value == pytest.approx(float(wrong["test"].mean()))
        assert row.expected_error.status == "assumed"
    assert found.total.rectified.value == pytest.approx(sum(row.rectified.value for row in found.tasks) / 3)
    assert found.chosen_on_labels is False
    assert found.missing == {}


def test_transfer_residual_and_distance_are_those_of_the_bound_and_the_sweep(suite, artifact):
    sections = ("label_free", "bound", "sweep")
    (made,) = report(artifact, suite, settings=SMALL, sections=sections).data.merges
    corrected = {term.name: term.estimate for term in made.bound.readings[-1].terms}
    assert made.label_free.transfer.value == pytest.approx(corrected["transfer error"].value)
    at = min(made.sweep.paths[0].points, key=lambda point: abs(point.s - 1))
    assert made.label_free.residual == pytest.approx(at.residual)
    assert made.label_free.distance == pytest.approx(at.distance)


def test_no_label_is_read_where_none_is_to_be_read(artifact, bare):
    """Poison in place of labels changes nothing, and would be noticed."""
    poison = poisoned(toy.build(overlap=0.5))
    assert report(artifact, poison, settings=BARE).data.merges == bare.merges
    with pytest.raises(AssertionError, match="a label was read"):
        report(artifact, poison, settings=SMALL)


def test_sections_that_need_labels_say_so_and_the_others_are_there(suite, artifact, bare):
    (made,) = bare.merges
    for name in NEED_LABELS:
        assert getattr(made, name) is None
        reason = bare.provenance.missing[f"average: {name}"]
        assert "expected the labels of split " in reason
        assert "--no-labels" in reason
        assert "\n" not in reason
    for name in ("label_free", "distillation", "entk"):
        assert getattr(made, name) is not None
    assert made.label_free.total.rectified is None
    assert made.label_free.total.test_error is None
    assert "no validation labels of task0, task1, task2" in " ".join(bare.provenance.missing.values())
    labelled = section(artifact, suite)
    for with_labels, without in zip(labelled.tasks, made.label_free.tasks, strict=True):
        for name in ("total_variation", "divergence", "disagreement", "expected_error"):
            assert getattr(with_labels, name) == getattr(without, name)


def test_a_suite_that_has_no_labels_needs_no_option(suite, artifact, bare):
    tasks = [
        task.changed(**{split: Sample(getattr(task, split).inputs) for split in task.splits}) for task in suite.tasks
    ]
    unlabelled = dataclasses.replace(suite, tasks=tasks)
    found = report(merge("average", unlabelled), unlabelled, settings=SMALL).data
    assert found.merges[0].label_free == bare.merges[0].label_free
    assert found.verdict == bare.verdict
    assert (
        "labels of split test of every task; got none in task 'task0'" in found.provenance.missing["average: accuracy"]
    )
    assert "--no-labels" not in " ".join(found.provenance.missing.values())


def test_the_verdict_speaks_of_what_is_known(suite, artifact, bare):
    (sentence,) = bare.verdict
    total, worst = (
        bare.merges[0].label_free.total,
        max(zip(bare.tasks, bare.merges[0].label_free.tasks, strict=True), key=lambda pair: pair[1].disagreement.value),
    )
    assert f"another label than its teachers on {100 * total.disagreement.value:.1f} ± " in sentence
    assert f"most on {worst[0]}: {100 * worst[1].disagreement.value:.1f} ± " in sentence
    assert "not certified" in sentence
    assert "corrected" not in sentence
    alone = report(artifact, suite, settings=SMALL, sections=("label_free",)).data
    assert "corrected on 90 validation labels" in alone.verdict[0]
    both = report(artifact, suite, settings=SMALL, sections=("label_free", "accuracy")).data
    assert "another label than its teachers" not in " ".join(both.verdict)


def test_labels_of_some_tasks_correct_these(suite, artifact):
    task = suite.tasks[1]
    part = dataclasses.replace(
        suite,
        tasks=[suite.tasks[0], task.changed(validation=Sample(task.validation.inputs)), suite.tasks[2]],
    )
    found = section(artifact, part)
    assert [row.rectified is not None for row in found.tasks] == [True, False, True]
    assert found.total.rectified is None
    assert found.total.test_error is not None
    assert found.missing == {"rectified estimate of the error": "no validation labels of task1"}
    assert section(artifact, part, alpha=(0.5, 0.0, 0.5)).total.rectified is not None


def test_a_merge_that_was_chosen_on_the_labels_is_said_to_be(suite, tmp_path):
    chosen = merge("task_arithmetic", suite)
    made = report(chosen, suite, settings=SMALL, sections=("label_free",))
    assert made.data.merges[0].label_free.chosen_on_labels is True
    page = made.save(tmp_path / "report").read_text(encoding="utf-8")
    assert "The merge was chosen on the validation labels" in page
    assert "label-free-1" in page


def test_the_page_has_no_column_that_nothing_fills(suite, artifact, tmp_path):
    pages = {}
    for name, settings in (("with", SMALL), ("without", BARE)):
        made = report(artifact, suite, settings=settings, sections=("label_free",))
        pages[name] = made.save(tmp_path / name).read_text(encoding="utf-8")
    for heading in ("rectified %", "validation error %", "test error %"):
        assert f'<th scope="col">{heading}</th>' in pages["with"]
        assert f'<th scope="col">{heading}</th>' not in pages["without"]
    assert "do not predict its error" in pages["without"]
