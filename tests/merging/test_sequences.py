"""Every row of the table on tasks with scores at every position: it works, or says in one line why not."""

import pytest
import torch

from bounds.types import InputError
from merging import METHODS, merge
from merging.methods import POST_PROCESSINGS
from merging.task import mean_accuracy, mean_quality
from tests.laws import chosen
from tests.sequences_world import world

QUICK = {"steps": 2, "examples": 8, "batch": 4, "iterations": 2, "top_k": 3}
REFUSED = {
    "gauss_newton": "one row of scores for an example",
    "tangent": "one row of scores for an example",
    "fisher": "take labels=sampled",
}
"""Rows that no suite of this kind can have, with what they say."""
WITHOUT_MASKS = ("regmean", "regmean_plus_plus", "esm", "prodistill", "prodistill_entry")
"""Rows that would count what is masked out."""


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_works_or_says_why_not_before_any_work(method, padded):
    suite, calls = world(padded=padded), []
    if method in REFUSED or (padded and method in WITHOUT_MASKS):
        tasks = [task.changed(forward=lambda *_: calls.append(1)) for task in suite.tasks]
        with pytest.raises(InputError, match=REFUSED.get(method, "without masked positions")) as raised:
            merge(method, suite.task_vectors, tasks, **chosen(method, **QUICK))
        assert "\n" not in str(raised.value)
        assert not calls
        return
    found = merge(method, suite, **chosen(method, **QUICK))
    assert all(bool(torch.isfinite(value).all()) for value in found.merged.values())
    assert mean_quality(suite.tasks, found.merged, "test") < 0


@pytest.mark.parametrize("padded", [True, False])
def test_fisher_merging_works_with_drawn_labels(padded):
    suite = world(padded=padded)
    found, again = (merge("fisher", suite, examples=8, labels="sampled") for _ in range(2))
    assert all(torch.equal(found.merged[name], value) for name, value in again.merged.items())


@pytest.mark.parametrize("name", POST_PROCESSINGS)
def test_what_follows_a_row_works(name):
    found = merge(f"task_arithmetic:scale=0.5+{name}", world())
    if name == "lines":
        looked = found.history["lines_validation_cross_entropy"]
        assert found.history["lines_rise"] == [found.history["lines_rises"][looked.index(min(looked))]]


def test_a_scale_is_chosen_by_the_cross_entropy_of_a_token():
    suite = world()
    found = merge("task_arithmetic", suite)
    scales, losses = found.history["scale"], found.history["validation_cross_entropy"]
    assert found.history["chosen_scale"] == [scales[losses.index(min(losses))]]
    assert mean_quality(suite.tasks, found.merged, "validation") == pytest.approx(-min(losses))
    merges = [merge("task_arithmetic", suite, scale=scale).merged for scale in scales]
    assert losses == pytest.approx([-mean_quality(suite.tasks, made, "validation") for made in merges])
    right = [mean_accuracy(suite.tasks, made, "validation") for made in merges]
    assert right.index(max(right)) != losses.index(min(losses)), "a choice by accuracy would be seen"


def test_learning_helps_on_the_tokens_that_were_not_seen():
    suite = world()
    average = merge("average", suite).merged
    learned = merge("samerging", suite, steps=30, examples=24, top_k=3).merged
    first, second = (mean_quality(suite.tasks, made, "test") for made in (average, learned))
    assert second > first + 0.1
