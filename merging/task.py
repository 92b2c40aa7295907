"""A task: a network function with its frozen head, and four disjoint splits; how it is scored and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, get_args

import torch
from torch import Tensor

from bounds.autodiff import batches, check_inputs
from bounds.scores import check_scores, mean_cross_entropy
from bounds.types import Forward, Inputs, Params, Sample, refuse
from bounds.validation import class_indices
from merging.measured import Measured, Taught, Where, measure

Split: TypeAlias = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
BATCH = 256
"""Examples of a pass without gradients."""


@dataclass(frozen=True)
class Task:
    """One classification task.

    ``forward`` maps (θ, inputs) to scores [N, C] with the task's head inside, C = ``len(class_names)`` >= 2;
    ``train`` is S_t, the sample the expert was fine-tuned on; ``calibration`` has no labels; ``validation`` chooses,
    ``test`` reports. All but ``test`` may be None: whatever asks for such a split is refused, and ``splits`` names
    those that are there. A split may have no labels: whatever needs them is refused (:func:`labels_of`). Splits are
    disjoint (a suite checks it). Labels of any kind of integer become int64 [N]; inputs in half precision become
    float32, like every weight that a merge computes with.

    What differs between kinds of task is here, as methods: :meth:`rows`, :meth:`taught`, :meth:`measured`,
    :meth:`quality`. A task whose network scores every position of an example is a
    :class:`~merging.sequences.SequenceTask`.

    Raises:
        InputError: fewer than two classes (a task of one class is always right), class names that are not distinct, an
            empty split, a labelled calibration split, labels that are no integers or out of range.
    """

    per_position: ClassVar[bool] = False
    """Whether the network gives a row of scores for every position of an example."""
    chosen_by: ClassVar[str] = "accuracy"
    """What a scale is chosen by on validation: the figure that :meth:`quality` is made of."""

    name: str
    forward: Forward
    class_names: Sequence[str]
    train: Sample
    calibration: Sample
    validation: Sample
    test: Sample

    def __post_init__(self) -> None:
        self._check_names()
        for split in SPLITS:
            sample: Sample | None = vars(self)[split]
            if sample is not None:
                object.__setattr__(self, split, self._checked(split, sample))
            elif split == "test":
                refuse(f"task {self.name!r}, split test", expected="a sample", got="none", cure="give it examples")
            else:
                object.__delattr__(self, split)  # so that asking for it comes to __getattr__

    def _check_names(self) -> None:
        names = list(self.class_names)
        if len(names) < 2 or len(set(names)) != len(names):
            got = f"{names[:3]}" if len(names) < 2 else f"{max(names, key=names.count)!r} more than once"
            cure = "name every class, and distinguish classes of one name"
            refuse(f"class names of task {self.name!r}", expected="two or more distinct names", got=got, cure=cure)

    def __getattr__(self, name: str) -> Sample:
        """Refuse a split that is not there, or that was not handed to whoever asks (see :func:`handed`)."""
        if name not in SPLITS:
            raise AttributeError(name)
        if _HANDED in vars(self):
            refuse(
                f"split {name} of task {self.name!r}",
                expected="a split that the method says it needs",
                got="one that was not handed to it",
                cure="name it in needs of the method's row",
            )
        refuse(
            f"split {name} of task {self.name!r}",
            expected="examples: what was asked for needs them",
            got="a task without this split",
            cure="give the task one, or leave out what needs it",
        )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are there, in the order of SPLITS."""
        return tuple(split for split in SPLITS if split in vars(self))

    def changed(self, **given: Any) -> Task:
        """Return the task with other values of some fields, as ``dataclasses.replace`` where no split is absent."""
        return type(self)(**{**{f.name: vars(self).get(f.name) for f in fields(type(self))}, **given})

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def particulars(self) -> list[Any]:
        """What tells this task from another one, besides names, classes and splits."""
        return []

    def scores(self, params: Params, inputs: Inputs, split: str, model: str) -> Tensor:
        """Return all scores of inputs of a split [N, C], under the weights of a model; see :func:`score_task`."""
        what = described(self.name, split, model)
        return score(self.forward, params, inputs, classes=self.classes, what=what)

    def rows(self, params: Params, sample: Sample, split: str, model: str) -> Iterator[tuple[Tensor, Where]]:
        """Yield rows of scores [M, C] of a sample of a split, finite, with the examples that they belong to."""
        scores = self.scores(params, sample.inputs, split, model)
        yield scores, (torch.arange(len(scores), device=scores.device),)

    def taught(
        self,
        params: Params,
        inputs: Inputs,
        split: str,
        model: str = "expert",
        *,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> Taught:
        """Return what is kept of a teacher's scores on inputs of a split: of a classifier all of them, as they are."""
        return Taught(self.scores(params, inputs, split, model))

    def counted(self, sample: Sample) -> Tensor | None:
        """Return which positions of a sample count [N, L]; None where an example has one row of scores."""
        return None

    def unmasked(self, inputs: Inputs) -> bool:
        """Whether everything in the inputs counts, as it always does where an example has one row of scores."""
        return True

    def batch_size(self, inputs: Inputs) -> int:
        """Return how many examples are scored in a pass without gradients."""
        return BATCH

    def measured(
        self, params: Params, split: Split, model: str = "merged", *, taught: Taught | None = None, same: bool = False
    ) -> Measured:
        """Return what the model of θ does on a labelled split, example by example. Exact.

        Args:
            params: θ.
            split: which split.
            model: whose weights, for errors.
            taught: of an expert on the same split, at temperature 1, to measure the KL from.
            same: the model is that expert, so that its scores need not be computed again where they are kept.

        Raises:
            InputError: no such split, no labels, scores that are not finite or do not fit the labels.
        """
        sample: Sample = getattr(self, split)
        labels = labels_of(self, split, f"{self.chosen_by.replace('_', '-')} of the {model} model")
        rows = self._known(taught) if taught is not None and same else None
        return measure(rows or self.rows(params, sample, split, model), labels, taught, self._text_bytes(split))

    def _known(self, taught: Taught) -> list[tuple[Tensor, Where]] | None:
        """Rows that need no pass, as the teacher's scores are all there."""
        return [(taught.scores, (torch.arange(len(taught.scores)),))]

    def _text_bytes(self, split: Split) -> Tensor | None:
        return None

    def quality(self, measured: Measured) -> float:
        """Return the figure by which models are ranked and scales chosen, the larger the better: the accuracy."""
        return measured.accuracy

    def _checked(self, split: Split, sample: Sample) -> Sample:
        what = f"task {self.name!r}, split {split}"
        if len(sample) == 0:
            refuse(what, expected="at least one example", got="none", cure="give every split examples")
        if split == "calibration" and sample.labels is not None:
            refuse(what, expected="no labels", got="labels", cure="pass Sample(inputs)")
        given = sample.labels
        labels = None if given is None else self._labels(given, sample, what)
        inputs = _widened(sample.inputs)
        return sample if inputs is sample.inputs and labels is sample.labels else Sample(inputs, labels)

    def _labels(self, labels: Tensor, sample: Sample, what: str) -> Tensor:
        return class_indices(labels, len(sample), self.classes, what)


_HANDED = "_handed"
"""Attribute of a task of which a method is handed some splits only."""


def handed(task: Task, splits: AbstractSet[Split]) -> Task:
    """Return the task with these splits only: the others are not in it, so that nothing can have been seen of them."""
    view = object.__new__(type(task))
    object.__setattr__(view, _HANDED, True)
    for name, value in vars(task).items():
        if name not in SPLITS or name in splits:
            object.__setattr__(view, name, value)
    return view


def check_splits(tasks: Sequence[Task], splits: AbstractSet[Split], what: str) -> None:
    """Check that every task has the splits that ``what`` needs.

    Raises:
        InputError: one lacks one.
    """
    for task in tasks:
        for split in splits:
            if split not in task.splits:
                refuse(
                    what,
                    expected=f"the split {split} of every task",
                    got=f"none in task {task.name!r}",
                    cure=f"give the task a {split} split, or do without",
                )


def labels_of(task: Task, split: Split, what: str) -> Tensor:
    """Return the labels [N] of a task's split, which ``what`` needs.

    Raises:
        InputError: the split has none, or is not there.
    """
    sample: Sample = getattr(task, split)
    if sample.labels is None:
        refuse_unlabelled(task.name, split, what)
    return sample.labels


def refuse_unlabelled(task: str, split: str, what: str, cure: str = "give the split labels, or do without") -> NoReturn:
    """Refuse what needs the labels of a split that has none.

    Raises:
        InputError: always.
    """
    refuse(what, expected=f"the labels of split {split} of every task", got=f"none in task {task!r}", cure=cure)


def check_labels(tasks: Sequence[Task], splits: AbstractSet[Split], what: str) -> None:
    """Check that every task has the splits that ``what`` needs, all but calibration with labels.

    Raises:
        InputError: one lacks one, or its labels.
    """
    check_splits(tasks, splits, what)
    for task in tasks:
        for split in sorted(splits - {"calibration"}):
            labels_of(task, split, what)


def check_one_row(tasks: Sequence[Task], what: str, cure: str = "use another one") -> None:
    """Check that every example has one row of scores, as ``what`` needs.

    Raises:
        InputError: a task whose network scores every position.
    """
    for task in tasks:
        if task.per_position:
            refuse(
                what,
                expected="tasks with one row of scores for an example",
                got=f"scores at every position in task {task.name!r}",
                cure=cure,
            )


def check_unmasked(tasks: Sequence[Task], what: str) -> None:
    """Check that no position of a calibration example is masked out, since ``what`` would count it.

    Raises:
        InputError: one is.
    """
    for task in tasks:
        if not task.unmasked(task.calibration.inputs):
            got, cure = f"some in task {task.name!r}", "pack texts to one length, or use another method"
            refuse(what, expected="calibration examples without masked positions", got=got, cure=cure)


def check_tasks(names: Sequence[str], tasks: Sequence[Task]) -> None:
    """Check that tasks are those of the task vectors ``names``, in the same order, and of one kind.

    Raises:
        InputError: another number of tasks, other names, another order; tasks with one row of scores for an example
            beside tasks with one for every position, whose losses and figures have no common unit.
    """
    if len({task.per_position for task in tasks}) > 1:
        mixed = [task.name for task in tasks if task.per_position]
        got = f"scores at every position in {mixed} alone"
        refuse("tasks", expected="all of one kind", got=got, cure="merge the others by themselves")
    found = [task.name for task in tasks]
    if found != list(names):
        same = "in the same order" if sorted(found) == sorted(names) else "of the same name"
        refuse(
            "tasks",
            expected=f"the task vectors' tasks {list(names)}",
            got=found,
            cure=f"pass one task per expert, {same}",
        )


def _widened(inputs: Inputs) -> Inputs:
    """Return inputs in half precision as float32, all others as they are."""
    if isinstance(inputs, Tensor):
        return inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    wide = {name: _widened(tensor) for name, tensor in inputs.items()}
    return inputs if all(wide[name] is tensor for name, tensor in inputs.items()) else wide  # pyright: ignore


@torch.no_grad()
def score(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    *,
    classes: int | None = None,
    what: str = "scores",
    batch_size: int = BATCH,
) -> Tensor:
    """Return the scores [N, C] of all inputs, computed in batches without gradients, through the gate. Exact.

    Args:
        forward: (θ, inputs) -> scores [N, C].
        params: θ.
        inputs: N examples.
        classes: C; None: any.
        what: whose scores, named in an error.
        batch_size: examples of a forward pass.

    Raises:
        InputError: see :func:`bounds.scores.check_scores`.
    """
    whole = torch.cat([forward(params, batch) for batch in batches(inputs, batch_size)])
    return check_scores(whole, check_inputs(inputs), classes, what)


def score_task(task: Task, params: Params, inputs: Inputs, split: str, model: str) -> Tensor:
    """Return the scores [N, C] of inputs of a task's split, under the weights of a model ([N, L, V] of sequences).

    Raises:
        InputError: scores that are not finite or not one for each class name; names task, split and model.
    """
    return task.scores(params, inputs, split, model)


def described(task: str, split: str, model: str) -> str:
    """Name the scores of a task's split under a model (pretrained, expert, merged, ...), as errors do."""
    return f"scores of task {task!r}, split {split}, {model} model"


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest score is at the label (in 0..1)."""
    return float((scores.argmax(dim=1) == labels).double().mean())


def cross_entropy(scores: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(mean_cross_entropy(scores.double(), labels))


def mean_accuracy(tasks: Sequence[Task], params: Params, split: Split, model: str = "merged") -> float:
    """Unweighted mean over tasks of the accuracy of θ on the named split."""
    return _mean([task.measured(params, split, model).accuracy for task in tasks])


def mean_quality(tasks: Sequence[Task], params: Params, split: Split, model: str = "merged") -> float:
    """Unweighted mean over tasks of what models are ranked by (:meth:`Task.quality`), the larger the better."""
    return _mean([task.quality(task.measured(params, split, model)) for task in tasks])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
