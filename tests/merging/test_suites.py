"""What a suite refuses at its door."""

import warnings
from dataclasses import replace

import pytest
import torch

from bounds.types import InputError, Sample
from merging.suites import Suite, toy
from merging.suites.base import row_hashes, shared_examples


@pytest.fixture
def suite():
    return toy.build()


def leaking(task, source, target, count=2):
    """The task with the last ``count`` examples of one split among those of another, after the first of it."""
    own, other = getattr(task, target), getattr(task, source)
    inputs = torch.cat([own.inputs[:1], other.inputs[-count:], own.inputs[1:]])
    labels = None if own.labels is None else own.labels.new_zeros(len(inputs))
    return replace(task, **{target: Sample(inputs, labels)})


@pytest.mark.parametrize(
    ("source", "target"),
    [("train", "test"), ("validation", "test"), ("train", "calibration"), ("calibration", "validation")],
)
def test_splits_that_share_an_example_are_refused_with_its_place(suite, source, target):
    size = len(getattr(suite.tasks[1], source))
    tasks = [suite.tasks[0], leaking(suite.tasks[1], source, target), suite.tasks[2]]
    with pytest.raises(InputError, match=rf"task 'task1': .*example {size - 2} of {source} is example 1 of {target}"):
        Suite("mine", suite.task_vectors, tasks)


def test_shared_examples_are_named_where_they_are_allowed(suite):
    tasks = [leaking(suite.tasks[0], "train", "test"), *suite.tasks[1:]]
    with pytest.warns(UserWarning, match="2 of 50 examples of test are in train"):
        Suite("mine", suite.task_vectors, tasks, shared_examples="name")


def test_equal_examples_within_a_split_or_of_other_tasks_are_no_matter(suite):
    task = suite.tasks[0]
    twice = replace(task, train=task.train.take(torch.tensor([0, 0, 1, 2])))
    other = replace(suite.tasks[1], train=suite.tasks[0].test.take(slice(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Suite("mine", suite.task_vectors, [twice, other, suite.tasks[2]])
    assert not shared_examples(twice)


def test_an_example_is_all_its_tensors():
    ids, mask = torch.arange(6).view(3, 2), torch.ones(3, 2, dtype=torch.bool)
    other = mask.clone()
    other[1, 0] = False
    one, two = (row_hashes({"ids": ids, "mask": m}) for m in (mask, other))
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, True]
    assert len(set(one)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int32, torch.float64])
def test_rows_of_any_dtype_and_layout_are_hashed_by_value(dtype):
    rows = torch.tensor([[1, 0, 1], [0, 1, 0]]).to(dtype)
    assert row_hashes(rows) == row_hashes(rows.T.contiguous().T)
    assert row_hashes(rows)[::-1] == row_hashes(rows.flip(0))


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1], [0, 1, 1]])
def test_tasks_of_others_are_refused(suite, order):
    with pytest.raises(InputError, match="tasks: expected"):
        Suite("mine", suite.task_vectors, [suite.tasks[i] for i in order])
