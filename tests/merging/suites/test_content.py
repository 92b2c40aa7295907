"""What a suite is by its content: hashes see every change, fingerprints what is more than rounding."""

from dataclasses import replace

import pytest
import torch

from bounds.types import InputError, Sample
from diagnostics import report
from merging import artifact, merge
from merging.suites import Suite, alike, load, toy
from merging.task_vectors import TaskVectors


def changed(suite: Suite, **fields) -> Suite:
    return replace(suite, tasks=[suite.tasks[0].changed(**fields), *suite.tasks[1:]])


def others(suite: Suite) -> dict[str, Suite]:
    task, vectors = suite.tasks[0], suite.task_vectors
    forward, labels = task.forward, task.test.labels
    assert labels is not None
    experts = {name: vectors.expert(i) for i, name in enumerate(vectors.names)}
    experts["task0"] = {name: 1.05 * value for name, value in experts["task0"].items()}
    return {
        "head": changed(suite, forward=lambda p, x: -forward(p, x)),
        "labels": changed(suite, test=Sample(task.test.inputs, labels.roll(1))),
        "expert": replace(suite, task_vectors=TaskVectors.from_experts(vectors.base, experts)),
    }


@pytest.mark.parametrize("what", ["head", "labels", "expert"])
def test_a_changed_suite_is_another_one(what, tmp_path):
    suite = toy.build()
    other = others(suite)[what]
    assert suite.identity == toy.build().identity
    assert other.identity != suite.identity
    merged = merge("average", suite)
    artifact.save(merged, tmp_path / "out.pt")
    kept = artifact.load(tmp_path / "out.pt")
    with pytest.raises(InputError, match=r"artifact's suite: expected the suite that it was merged from.*'task0'"):
        report(kept, other, sections=("accuracy",))
    assert report(kept, toy.build(), sections=("accuracy",)).data.merges[0].accuracy is not None


def test_rounding_is_no_change_and_files_need_no_fingerprint():
    suite = toy.build()
    vectors = suite.task_vectors
    experts = {name: {k: v * (1 + 1e-7) for k, v in vectors.expert(i).items()} for i, name in enumerate(vectors.names)}
    near = replace(suite, task_vectors=TaskVectors.from_experts(vectors.base, experts))
    assert near.identity != suite.identity
    assert near.fingerprint is not None
    assert suite.fingerprint is not None
    assert alike(near.fingerprint, suite.fingerprint)
    assert not alike(near.fingerprint[:2], suite.fingerprint)
    assert torch.isfinite(suite.fingerprint).all()
    hashed = replace(suite, sources={"a": "0" * 64}, origin="mine.yaml")
    assert hashed.fingerprint is None
    assert hashed.identity == replace(hashed, tasks=others(suite)["head"].tasks).identity, "the files say it all"
    assert replace(hashed, origin="package.module:function").fingerprint is not None


def test_a_suite_of_the_table_is_recognised_by_its_files_if_it_has_any():
    assert load("mini8").fingerprint is None
    assert load("toy").fingerprint is not None


def test_a_fingerprint_without_labels_knows_the_suite_by_the_rest():
    suite = toy.build()
    bare = suite.without_labels()
    assert all(getattr(task, split).labels is None for task in bare.tasks for split in task.splits)
    assert bare.tasks[0].train.inputs is suite.tasks[0].train.inputs
    assert bare.content != suite.content
    whole, part = suite.fingerprint, bare.fingerprint
    assert whole is not None
    assert part is not None
    assert part.isnan().sum(dim=1).tolist() == [5, 5, 5]
    assert alike(whole, part)
    assert alike(part, part)
    for name, other in others(suite).items():
        found = other.without_labels().fingerprint
        assert found is not None
        assert alike(part, found) == (name == "labels")
