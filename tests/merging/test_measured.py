"""Sums over counted positions: against loops, and means over tokens are no means over documents."""

import math

import pytest
import torch

from merging.measured import Positions, Taught, measure
from merging.suites import toy
from tests.sequences_world import VOCABULARY, world


def loop(scores, labels):
    """Per document: counted positions, right ones, cross-entropy; by Python's own numbers."""
    found = []
    for document, targets in zip(scores.tolist(), labels.tolist(), strict=True):
        counts = [0, 0, 0.0]
        for row, label in zip(document, targets, strict=True):
            if label < 0:
                continue
            total = math.fsum(math.exp(s) for s in row)
            counts = [
                counts[0] + 1,
                counts[1] + (row.index(max(row)) == label),
                counts[2] + math.log(total) - row[label],
            ]
        found.append(counts)
    return found


def test_sums_are_those_of_a_loop_over_documents_and_positions():
    suite = world()
    task, theta = suite.tasks[0], suite.task_vectors.expert(1)
    found = task.measured(theta, "test")
    expected = loop(task.forward(theta, task.test.inputs), task.test.labels)
    for column, sums in enumerate((found.positions, found.correct, found.cross_entropy)):
        assert sums.tolist() == pytest.approx([row[column] for row in expected], abs=1e-9)
    total = [sum(column) for column in zip(*expected, strict=True)]
    assert found.accuracy == pytest.approx(total[1] / total[0])
    assert found.loss == pytest.approx(total[2] / total[0])
    by_document = sum(row[2] / row[0] for row in expected) / len(expected)
    assert abs(found.loss - by_document) > 1e-3, "documents of different lengths tell the two means apart"


def test_the_kl_from_a_teacher_is_that_of_its_events():
    suite = world()
    task = suite.tasks[0]
    teacher, student = suite.task_vectors.expert(0), suite.task_vectors.expert(1)
    counted = task.test.labels != -100
    p, q = (task.forward(theta, task.test.inputs).log_softmax(-1)[counted] for theta in (teacher, student))
    exact = float((p.exp() * (p - q)).sum(1).mean())
    last = -1.0
    for k in (1, 3, 6, VOCABULARY):
        taught = task.taught(teacher, task.test.inputs, "test", top_k=k)
        found = task.measured(student, "test", taught=taught)
        assert found.kl is not None
        assert last < found.mean(found.kl) <= exact + 1e-12
        last = found.mean(found.kl)
    assert last == pytest.approx(exact, abs=1e-12)


def test_a_classifier_is_measured_by_the_same_sums():
    suite = toy.build()
    task, theta = suite.tasks[0], suite.task_vectors.base
    scores = task.forward(theta, task.test.inputs)
    found = task.measured(theta, "test", taught=task.taught(suite.task_vectors.expert(0), task.test.inputs, "test"))
    assert found.positions.tolist() == [1.0] * 48
    assert found.correct.tolist() == (scores.argmax(1) == task.test.labels).double().tolist()
    p, q = task.forward(suite.task_vectors.expert(0), task.test.inputs).log_softmax(1), scores.log_softmax(1)
    assert found.kl is not None
    assert torch.allclose(found.kl, (p.exp() * (p - q)).sum(1))


def test_rows_that_come_in_any_cut_give_the_same_sums():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (6, 4), generator=generator)
    where = torch.ones(6, 4).nonzero(as_tuple=True)
    whole = measure([(scores[where], where)], labels)
    order = torch.randperm(24, generator=generator).split(7)
    parts = [tuple(index[part] for index in where) for part in order]
    cut = measure([(scores[part], part) for part in parts], labels)
    assert torch.allclose(whole.cross_entropy, cut.cross_entropy)
    assert torch.equal(whole.correct, cut.correct)


def test_what_is_kept_of_positions_is_taken_by_example():
    kept = Positions(torch.tensor([[True, False], [True, True]]), torch.zeros(2, 2, 3, dtype=torch.int32))
    part = kept.take(torch.tensor([1]))
    assert part.counted.tolist() == [[True, True]]
    assert part.classes is not None
    assert part.classes.shape == (1, 2, 3)
    assert Taught(torch.zeros(1)).positions is None
