"""Sums over the counted positions of an example, and divergences of whole distributions position by position."""

import pytest
import torch

from bounds.distillation import kl, total_variation
from bounds.types import Sample
from diagnostics.terms import tokens
from merging.sequences import IGNORED
from tests.sequences_world import VOCABULARY, world


@pytest.fixture(params=[1 << 22, 3 * VOCABULARY])
def small_parts(request, monkeypatch):
    monkeypatch.setattr(tokens, "ROWS", request.param)


@pytest.mark.usefixtures("small_parts")
def test_sums_are_those_of_the_counted_positions():
    suite = world()
    task, theta = suite.tasks[0], suite.task_vectors.expert(0)
    found = tokens.figures(task, theta, task.test, "test", "expert", 0.1)
    scores, labels = task.forward(theta, task.test.inputs), task.test.labels
    assert labels is not None
    for i in range(len(labels)):
        kept = labels[i] != IGNORED
        p = scores[i][kept].softmax(-1)
        own = p.gather(1, labels[i][kept][:, None])[:, 0]
        assert float(found["positions"][i]) == int(kept.sum())
        assert float(found["cross_entropy"][i]) == pytest.approx(float(-own.log().sum()))
        assert float(found["smoothed"][i]) == pytest.approx(float(-(0.9 * own + 0.1 / VOCABULARY).log().sum()))
        assert float(found["wrong"][i]) == float((p.argmax(-1) != labels[i][kept]).sum())


@pytest.mark.usefixtures("small_parts")
def test_divergences_are_means_over_counted_positions_with_labels_or_without():
    suite = world()
    task, vectors = suite.tasks[1], suite.task_vectors
    teacher, student = vectors.expert(1), vectors.base
    found = tokens.imitation(task, teacher, student, task.test, "test", temperature=2.0)
    p, q = (task.forward(theta, task.test.inputs) for theta in (teacher, student))
    for i, kept in enumerate(task.test.labels != IGNORED):
        assert float(found.divergence[i]) == pytest.approx(float(kl(p[i][kept], q[i][kept]).mean()))
        assert float(found.surrogate[i]) == pytest.approx(float(kl(p[i][kept], q[i][kept], 2.0).mean()))
        assert float(found.variation[i]) == pytest.approx(float(total_variation(p[i][kept], q[i][kept]).mean()))
        apart = (p[i][kept].argmax(-1) != q[i][kept].argmax(-1)).double().mean()
        assert float(found.disagreement[i]) == pytest.approx(float(apart))
    bare = tokens.imitation(task, teacher, student, Sample(task.test.inputs), "test", temperature=2.0)
    torch.testing.assert_close(bare.divergence, found.divergence)
    same = tokens.imitation(task, teacher, teacher, task.test, "test")
    assert float(same.divergence.abs().max()) == 0.0


def test_drawn_labels_are_the_teachers_and_stand_where_positions_count():
    suite = world()
    task, theta = suite.tasks[0], suite.task_vectors.expert(0)
    inputs = task.calibration.inputs
    assert not isinstance(inputs, torch.Tensor)
    repeated = {name: value.repeat(40, 1) for name, value in inputs.items()}
    many = Sample(repeated)
    drawn = tokens.labelled_by(task, theta, many, "calibration", seed=0)
    assert drawn.labels is not None
    assert torch.equal(drawn.labels != IGNORED, repeated["attention_mask"] != 0)
    scores = task.forward(theta, inputs)
    counts = torch.nn.functional.one_hot(drawn.labels.clamp_min(0), VOCABULARY).view(40, *scores.shape).double().mean(0)
    kept = inputs["attention_mask"] != 0
    p = scores.softmax(-1)[kept]
    error = (counts[kept] - p).abs() / (p * (1 - p) / 40).sqrt().clamp_min(0.02)
    assert float(error.max()) < 6
    again = tokens.labelled_by(task, theta, many, "calibration", seed=0)
    assert again.labels is not None
    assert torch.equal(again.labels, drawn.labels)
