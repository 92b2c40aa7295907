"""Tasks: labels, class names, what a method is handed, and the gate in front of every figure."""

from dataclasses import replace

import pytest
import torch

from bounds.types import InputError, Sample
from merging import TaskVectors, merge
from merging.commands.evaluation import evaluate
from merging.suites import toy
from merging.task import check_labels, check_tasks, handed, labels_of, mean_accuracy, score_task


@pytest.fixture
def suite():
    return toy.build()


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.int, lambda y: y.to(torch.uint8), lambda y: y[:, None], lambda y: y.to(torch.int16)[:, None]],
    ids=["int32", "uint8", "column", "int16 column"],
)
def test_labels_of_any_kind_of_integer_become_class_indices(suite, convert):
    task = suite.tasks[0]
    given = replace(task, validation=Sample(task.validation.inputs, convert(task.validation.labels)))
    assert given.validation.labels.dtype == torch.int64
    assert torch.equal(given.validation.labels, task.validation.labels)


def test_booleans_are_two_classes(suite):
    task = suite.tasks[1]
    given = replace(task, test=Sample(task.test.inputs, task.test.labels == 1))
    assert torch.equal(given.test.labels, task.test.labels)


@pytest.mark.parametrize(
    ("convert", "found"),
    [
        (torch.Tensor.float, r"integers.*float32.*\.long\(\)"),
        (lambda y: torch.nn.functional.one_hot(y, 3), "one-hot matrix take .argmax"),
        (lambda y: y + 1, "labels in 0..2; got 1..3"),
        (lambda y: y - 1, "got -1..1"),
    ],
    ids=["float", "one-hot", "large", "negative"],
)
def test_other_labels_are_refused_with_task_and_split(suite, convert, found):
    task = suite.tasks[0]
    with pytest.raises(InputError, match=f"^task 'task0', split validation: .*{found}"):
        replace(task, validation=Sample(task.validation.inputs, convert(task.validation.labels)))


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "a"]])
def test_class_names_are_two_or_more_and_distinct(suite, names):
    with pytest.raises(InputError, match="class names of task 'task0'"):
        replace(suite.tasks[0], class_names=names)


@pytest.mark.parametrize("inputs", [[[1.0]], "text", {}, {"a": [1]}, torch.tensor(1.0), None])
def test_inputs_that_are_no_tensors_are_refused_in_one_line(inputs):
    with pytest.raises(InputError, match="inputs of a sample") as refused:
        Sample(inputs)
    assert "\n" not in str(refused.value)


def test_labels_that_are_no_tensor_are_refused():
    with pytest.raises(InputError, match="labels of a sample"):
        Sample(torch.ones(2, 1), [0, 1])  # pyright: ignore


def test_half_precision_inputs_are_widened(suite):
    task = suite.tasks[0]
    half = replace(task, test=Sample(task.test.inputs.half(), task.test.labels))
    assert half.test.inputs.dtype == torch.float32
    assert task.test.inputs.dtype == torch.float64


def test_a_handed_task_holds_what_was_handed_and_nothing_else(suite):
    view = handed(suite.tasks[0], {"calibration"})
    assert view.calibration is suite.tasks[0].calibration
    assert not {"train", "validation", "test"} & set(vars(view))
    for split in ("train", "validation", "test"):
        with pytest.raises(InputError, match=f"split {split} of task 'task0'.*not handed"):
            getattr(view, split)
    with pytest.raises(AttributeError):
        _ = view.nonsense  # pyright: ignore


@pytest.mark.parametrize("index", [[1, 0, 2], [0, 1], [0, 1, 1], [0, 1, 2, 2]])
def test_tasks_are_those_of_the_task_vectors(suite, index):
    with pytest.raises(InputError, match="tasks: expected the task vectors' tasks"):
        check_tasks(suite.task_vectors.names, [suite.tasks[i] for i in index])
    for method in ("average", "ties", "samerging"):
        with pytest.raises(InputError, match="tasks: expected"):
            merge(method, suite.task_vectors, [suite.tasks[i] for i in index])


def test_no_tasks_where_no_split_is_needed_and_only_there(suite):
    assert merge("average", suite.task_vectors, []).used == {}
    assert merge("ties", suite.task_vectors, [], scale=0.5).used == {}
    for method in ("ties", "regmean", "tangent"):
        with pytest.raises(InputError, match="tasks: expected"):
            merge(method, suite.task_vectors, [])


def broken(task, split, bad=3):
    sample = getattr(task, split)
    inputs = sample.inputs.clone()
    inputs[:bad] = torch.nan
    return replace(task, **{split: Sample(inputs, sample.labels)})


def test_scores_that_are_not_finite_never_reach_a_figure(suite):
    tasks = [suite.tasks[0], broken(suite.tasks[1], "validation"), suite.tasks[2]]
    with pytest.raises(InputError, match=r"task 'task1', split validation, merged model: .* 3 of 30"):
        mean_accuracy(tasks, suite.task_vectors.base, "validation")
    with pytest.raises(InputError, match="split validation, merged model"):
        merge("task_arithmetic", suite.task_vectors, tasks)
    tested = replace(suite, tasks=[*suite.tasks[:2], broken(suite.tasks[2], "test")])
    with pytest.raises(InputError, match="task 'task2', split test, pretrained model"):
        evaluate(tested, suite.task_vectors.base)
    taught = [broken(suite.tasks[0], "calibration", 24), *suite.tasks[1:]]
    for method in ("samerging", "tangent"):
        with pytest.raises(InputError, match="task 'task0', split calibration, expert model"):
            merge(method, suite.task_vectors, taught, examples=8)


def test_scores_agree_with_the_class_names(suite):
    task = replace(suite.tasks[0], class_names=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="4 scores of an example"):
        score_task(task, suite.task_vectors.base, task.test.inputs, "test", "pretrained")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_compute_in_float32(dtype):
    suite = toy.build(dtype=torch.float32)
    vectors = suite.task_vectors
    base = {k: v.to(dtype) for k, v in vectors.base.items()}
    experts = {n: {k: v.to(dtype) for k, v in vectors.expert(i).items()} for i, n in enumerate(vectors.names)}
    half = TaskVectors.from_experts(base, experts)
    for params in (half.base, half.expert(0), merge("average", half, suite.tasks).merged):
        assert {value.dtype for value in params.values()} == {torch.float32}
    assert all(torch.equal(half.expert(0)[k].to(dtype), experts["task0"][k]) for k in base)
    rows, _ = evaluate(replace(suite, task_vectors=half), half.base)
    assert all(0 <= row.accuracy["expert"] <= 1 for row in rows)


def test_splits_may_be_absent_and_then_cannot_be_asked_for():
    task = toy.build().tasks[0]
    bare = task.changed(train=None, calibration=None)
    assert bare.splits == ("validation", "test")
    assert bare.changed(name="b").splits == ("validation", "test")
    for view in (bare, handed(bare, {"validation", "train"})):
        with pytest.raises(InputError, match="split train of task 'task0'"):
            _ = view.train
    with pytest.raises(InputError, match="split test: expected a sample; got none"):
        task.changed(test=None)
    with pytest.raises(AttributeError):
        _ = bare.nothing


def test_what_needs_labels_that_are_not_there_is_refused_in_one_line(suite):
    task = suite.tasks[0]
    bare = task.changed(validation=Sample(task.validation.inputs), test=Sample(task.test.inputs))
    assert bare.splits == task.splits
    assert torch.equal(labels_of(task, "test", "this"), task.test.labels)
    check_labels([bare], {"train", "calibration"}, "this")
    for ask in (
        lambda: labels_of(bare, "validation", "this"),
        lambda: check_labels([task, bare], {"validation", "calibration"}, "this"),
    ):
        with pytest.raises(InputError, match=r"^this: expected the labels of split validation.*none in task 'task0'"):
            ask()
    part = replace(suite, tasks=[bare, *suite.tasks[1:]])
    with pytest.raises(InputError, match="method task_arithmetic: expected the labels of split validation"):
        merge("task_arithmetic", part)
    with pytest.raises(InputError, match="test accuracy: expected the labels of split test"):
        evaluate(part, suite.task_vectors.base)
    with pytest.raises(InputError, match="accuracy of the merged model: expected the labels of split test"):
        mean_accuracy(part.tasks, suite.task_vectors.base, "test")
    assert part.unlabelled_tasks == ("task0",)
