"""The table after a merge: accuracies of examples, or perplexities of tokens."""

import math

import pytest
import torch
from rich.console import Console

from merging import merge
from merging.commands.evaluation import TokenRow, accuracy_table, evaluate
from merging.suites import Suite, toy
from tests.sequences_world import world


def printed(rows):
    console = Console(width=140)
    with console.capture() as capture:
        console.print(accuracy_table(rows, "average"))
    return " ".join(capture.get().split())


def test_perplexities_stand_beside_the_accuracy_of_a_token():
    suite = world()
    average = merge("average", suite).merged
    rows, found = evaluate(suite, average)
    for row, by_model, task in zip(rows, found, suite.tasks, strict=True):
        assert isinstance(row, TokenRow)
        assert row.test_tokens == int((task.test.labels != -100).sum())
        assert row.cross_entropy["merged"] == by_model["merged"].loss == task.measured(average, "test").loss
        assert not row.bits_per_byte
    text = printed(rows)
    assert "test perplexity, accuracy (%) of a token" in text
    assert "bits per byte" not in text
    mean = sum(row.cross_entropy["merged"] for row in rows) / 2
    assert f"{math.exp(mean):.2f} {50 * sum(row.accuracy['merged'] for row in rows):.1f}" in text
    told = [task.changed(text_bytes={"test": torch.arange(12) + 5}) for task in suite.tasks]
    rows = evaluate(Suite(suite.name, suite.task_vectors, told), average)[0]
    assert isinstance(rows[0], TokenRow)
    expected = float(found[0]["expert"].cross_entropy.sum()) / math.log(2) / float((torch.arange(12) + 5).sum())
    assert rows[0].bits_per_byte["expert"] == pytest.approx(expected)
    assert f"{expected:.3f}" in printed(rows)
    assert "bits per byte" in printed(rows)


def test_classifiers_have_the_table_they_had():
    suite = toy.build()
    rows, _ = evaluate(suite, suite.task_vectors.base)
    text = printed(rows)
    assert "average: test accuracy (%) and cross-entropy (nats)" in text
    assert f"{100 * rows[0].accuracy['expert']:.1f} {rows[0].cross_entropy['expert']:.3f}" in text
