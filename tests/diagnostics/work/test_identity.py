"""What a kept result belongs to: a suite's content and the code behind it."""

from dataclasses import replace

import pytest

from bounds.types import Sample
from diagnostics.sections import entk
from diagnostics.work import identity
from diagnostics.work.identity import code_of, imports
from diagnostics.workspace import Workspace
from merging.suites import all_hashed, toy
from merging.task_vectors import TaskVectors


def one_task(suite, **change):
    return replace(suite, tasks=[replace(suite.tasks[0], **change), *suite.tasks[1:]])


@pytest.mark.parametrize("split", ["train", "calibration", "validation", "test"])
@pytest.mark.parametrize("part", ["inputs", "labels"])
def test_a_suite_in_memory_is_known_by_every_example(split, part):
    suite = toy.build()
    sample = getattr(suite.tasks[0], split)
    assert suite.content == toy.build().content
    if part == "labels" and sample.labels is None:
        return
    value = getattr(sample, part).clone()
    value[-1] = value[0] if part == "labels" else value[-1] + 1e-6
    inputs, labels = (value, sample.labels) if part == "inputs" else (sample.inputs, value)
    assert one_task(suite, **{split: Sample(inputs, labels)}).content != suite.content or (
        part == "labels" and value.equal(sample.labels)
    )


def test_and_by_its_names_weights_and_forward_functions():
    suite = toy.build()
    forward = suite.tasks[0].forward
    vectors = suite.task_vectors
    experts = {name: vectors.expert(i) for i, name in enumerate(vectors.names)}
    experts["task1"] = {name: value + 1e-9 for name, value in experts["task1"].items()}
    others = [
        replace(suite, name="mine"),
        one_task(suite, class_names=["x", "y", "z"]),
        one_task(suite, forward=lambda p, x: 1.001 * forward(p, x)),
        replace(suite, task_vectors=TaskVectors.from_experts(vectors.base, experts)),
    ]
    assert len({s.content for s in [suite, *others]}) == 5


def test_only_files_with_a_hash_identify_a_suite():
    assert all_hashed({"a": "0" * 64})
    assert not all_hashed({})
    assert not all_hashed({"a": "0" * 64, "toy": "seed 0"})


def test_code_is_all_that_a_module_imports_and_nothing_that_shows_it():
    reached, todo = set(), ["diagnostics.workspace"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += imports(name)
    assert {"bounds.ntk", "bounds.ntk.blocks", "merging.task_vectors", "diagnostics.terms.linear"} <= reached
    assert not reached & {"diagnostics.page", "diagnostics.text", "diagnostics.sections.sweep"}


def test_changed_source_changes_the_hash_of_what_imports_it(monkeypatch):
    before = {f: code_of(f) for f in (entk.compute, Workspace.facts)}
    source = identity._source
    monkeypatch.setattr(identity, "_source", lambda m: source(m) + ("#" if m == "diagnostics.sections.entk" else ""))
    identity._code.cache_clear()
    try:
        assert code_of(entk.compute) != before[entk.compute]
        assert code_of(Workspace.facts) == before[Workspace.facts]
    finally:
        identity._code.cache_clear()
