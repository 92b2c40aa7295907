"""A task with scores at every position: what counts, what is refused, and that nothing holds all scores."""

import pytest
import torch

from bounds.autodiff import MEMORY_VARIABLE
from bounds.types import InputError, Sample
from merging.sequences import IGNORED, Numbered, SequenceTask
from merging.suites import Suite, toy
from merging.task import check_one_row, check_tasks, handed
from tests.sequences_world import LENGTH, VOCABULARY, world


@pytest.fixture
def task():
    return world().tasks[0]


def test_labels_or_the_mask_say_what_counts(task):
    assert torch.equal(task.counted(task.test), task.test.labels != IGNORED)
    assert torch.equal(task.counted(task.calibration), task.calibration.inputs["attention_mask"] != 0)
    assert not task.unmasked(task.calibration.inputs)
    packed = world(padded=False).tasks[0]
    assert packed.unmasked(packed.calibration.inputs)
    counted = packed.counted(packed.calibration)
    assert counted is not None
    assert torch.equal(counted, torch.ones(24, LENGTH, dtype=torch.bool))
    own = task.changed(mask="counted", calibration=Sample({"input_ids": torch.zeros(2, LENGTH).long()}))
    assert bool(own.counted(own.calibration).all()), "no such entry: all positions count"


def test_rows_are_the_counted_positions_whatever_the_memory(task, monkeypatch):
    theta = world().task_vectors.base
    whole, counted = task.forward(theta, task.test.inputs), (task.test.labels != IGNORED).nonzero().tolist()
    for budget in (2**30, 8 * 4 * LENGTH * VOCABULARY * 5):
        monkeypatch.setenv(MEMORY_VARIABLE, str(budget))
        sizes, met = [], []
        for scores, where in task.rows(theta, task.test, "test", "base"):
            sizes.append(len(where[0].unique()))
            assert torch.allclose(scores, whole[where], atol=1e-12)
            met += list(zip(*(index.tolist() for index in where), strict=True))
        assert max(sizes) == min(task.batch_size(task.test.inputs), 12)
        assert [list(place) for place in met] == counted
    assert task.batch_size(task.test.inputs) == 5


def test_a_teacher_is_kept_as_its_likeliest_classes_and_the_rest(task):
    theta = world().task_vectors.expert(0)
    found = task.taught(theta, task.calibration.inputs, "calibration", top_k=3, temperature=2.0)
    assert found.positions is not None
    assert found.positions.classes is not None
    assert found.scores.shape == (24, LENGTH, 4)
    p = (task.forward(theta, task.calibration.inputs) / 2.0).softmax(-1)
    assert torch.allclose(found.scores[..., :3].exp(), p.sort(dim=-1, descending=True).values[..., :3])
    assert torch.allclose(found.scores.exp().sum(-1), torch.ones(24, LENGTH, dtype=torch.float64))
    whole = task.taught(theta, task.calibration.inputs, "calibration")
    assert whole.scores.shape == (24, LENGTH, VOCABULARY)


def test_views_keep_what_a_sequence_task_is(task):
    view = handed(task, {"calibration"})
    assert isinstance(view, SequenceTask)
    assert view.splits == ("calibration",)
    with pytest.raises(InputError, match="one that was not handed to it"):
        _ = view.test
    bytes_ = {"test": torch.full((12,), 9)}
    changed = task.changed(train=None, text_bytes=bytes_)
    assert isinstance(changed, SequenceTask)
    assert changed.splits == ("calibration", "validation", "test")
    assert changed.changed(name="b").text_bytes == bytes_
    assert task.particulars != changed.particulars


LABELS = torch.zeros(12, LENGTH, dtype=torch.int64)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (LABELS.float(), "expected integers, the indices of classes"),
        (LABELS[:, 0], r"expected labels \[12, 8\]; got \[12\]"),
        (LABELS[:, 1:], r"expected labels \[12, 8\]; got \[12, 7\]"),
        (LABELS + VOCABULARY, r"expected labels in 0..10, or -100; got 11"),
        (LABELS - 1, r"labels in 0..10, or -100; got -1"),
        (LABELS + IGNORED, r"expected a position that counts in every example; got none in 12 of 12 \(first: 0\)"),
        (LABELS, "expected -100 where attention_mask is 0; got labels where it is 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task, labels, match):
    with pytest.raises(InputError, match=f"task 'first', split test: .*{match}"):
        task.changed(test=Sample(task.test.inputs, labels))


def test_what_else_is_refused(task):
    for counts in (torch.ones(3).long(), torch.zeros(12).long(), torch.ones(12)):
        with pytest.raises(InputError, match="text_bytes of test: expected a positive whole number for each example"):
            task.changed(text_bytes={"test": counts})
    with pytest.raises(InputError, match="text_bytes of training: expected one of its splits"):
        task.changed(text_bytes={"training": torch.ones(12).long()})
    with pytest.raises(InputError, match="class names of task 'first': expected two or more"):
        task.changed(class_names=Numbered(1))
    with pytest.raises(InputError, match=r"inputs of task 'first': expected \[N, L, ...\]; got \[12\]"):
        task.changed(test=Sample(torch.zeros(12).long()))
    theta = world().task_vectors.base
    wider = task.changed(class_names=Numbered(VOCABULARY + 1))
    with pytest.raises(InputError, match="split test, merged model: expected 12 scores"):
        wider.measured(theta, "test")
    pooled = task.changed(forward=lambda params, x: task.forward(params, x).mean(dim=1))
    with pytest.raises(InputError, match=r"expected a float tensor \[12, 8, 11\]; got torch.float64 \[12, 11\]"):
        pooled.measured(theta, "test")


def test_scores_that_are_not_finite_matter_where_they_count(task):
    theta, counted = world().task_vectors.base, task.test.labels != IGNORED

    def broken(places):
        def forward(params, x):
            scores = task.forward(params, x)
            return scores.masked_fill(places[: len(scores), :, None], torch.nan)

        return task.changed(forward=forward)

    assert broken(~counted).measured(theta, "test").loss == task.measured(theta, "test").loss
    with pytest.raises(InputError, match="split test, merged model: expected finite numbers; got NaN or infinity for"):
        broken(counted).measured(theta, "test")


def test_kinds_of_task_are_not_mixed_and_can_be_told(task):
    other = toy.build().tasks[0]
    with pytest.raises(
        InputError, match=r"tasks: expected all of one kind; got scores at every position in \['first'\]"
    ):
        check_tasks(["task0", "first"], [other, task])
    with pytest.raises(InputError, match=r"this: expected tasks with one row of scores for an example; .* 'first'"):
        check_one_row([task], "this")
    check_one_row([other], "this")
    assert world().per_position
    assert not toy.build().per_position


def test_names_of_classes_that_have_none():
    names = Numbered(50257)
    assert len(names) == 50257
    assert names[50256] == "50256"
    assert list(names[:3]) == ["0", "1", "2"]
    assert names == Numbered(50257)
    assert names != Numbered(3)
    assert len({names, Numbered(50257)}) == 1


def test_a_suite_is_told_by_its_scores_labels_and_masks(task):
    suite = world()
    changed = Suite(suite.name, suite.task_vectors, [task.changed(mask="none"), suite.tasks[1]])
    assert changed.identity != suite.identity
    labels = task.test.labels.clone()
    labels[0, 0] = (labels[0, 0] + 1) % VOCABULARY
    other = Suite(suite.name, suite.task_vectors, [task.changed(test=Sample(task.test.inputs, labels)), suite.tasks[1]])
    assert suite.fingerprint is not None
    assert other.fingerprint is not None
    assert suite.fingerprint.shape == (2, 10)
    assert not torch.allclose(suite.fingerprint, other.fingerprint)
    assert suite.without_labels().tasks[0].test.labels is None
