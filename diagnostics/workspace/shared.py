"""The suite of a report, its artifacts and settings, what identifies them, and the checks at the door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor

from bounds.types import Blocks, Params, Sample
from bounds.validation import check_weights
from diagnostics.settings import Settings, expert_weights
from diagnostics.subject import Subject
from diagnostics.terms.linear import subsample
from diagnostics.work.cache import Cache, digest
from diagnostics.work.device import moved
from diagnostics.work.pieces import Keeper, Pieces
from diagnostics.work.reads import Noted, Reads, unnoted
from diagnostics.work.workers import Track, warm_up
from merging.matching import check_match
from merging.params import partition
from merging.rows import silent
from merging.sequences import SequenceTask
from merging.suites import Suite
from merging.task import Split, Task, check_splits, refuse_unlabelled
from merging.task_vectors import TaskVectors

Scored: TypeAlias = Literal["example", "position"]
"""What has one row of scores: an example (of a classifier), or every position of one (of a language model)."""


class Shared:
    """One suite, the artifacts made from it, and how to measure them.

    ``settings``, ``alpha``, ``beta`` and ``models_looked_at`` note in ``reads`` that they were looked at: kept results
    rest on what was noted while they were computed.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        load: Callable[[], Suite],
        settings: Settings,
        cache: Cache | None = None,
        alpha: Sequence[float] = (),
        workers: int = 1,
        device: str = "cpu",
        track: Track = silent,
        *,
        made_of_files: bool = False,
    ) -> None:
        """Check α; load nothing.

        Args:
            subjects: the artifacts, at least one, all of one suite.
            load: gives the suite when it is needed.
            settings: how much to measure.
            cache: where results are kept (default: nowhere).
            alpha: evaluation weights [T] (default: uniform); β is among the settings.
            workers: processes.
            device: device of PyTorch.
            track: shows progress.
            made_of_files: whether the suite is made of nothing but the files whose sha256 the artifacts list. Those
                then identify it, and a cached report does not load it; any other suite is identified by its content.

        Raises:
            InputError: weights α or β off the simplex.
        """
        settings = unnoted(settings)
        self.subjects, self.load, self.plain_settings = subjects, load, settings
        self.workers, self.device, self.made_of_files = workers, device, made_of_files
        count = len(self.names)
        self._alpha = check_weights(alpha, count, "alpha") if alpha else (1 / count,) * count
        self._beta = expert_weights(settings.beta, count)
        fields = {**asdict(settings), "alpha": self._alpha, "models_looked_at": len(subjects)}
        self.reads = Reads(fields.__getitem__)
        self.settings = cast(Settings, Noted(settings, self.reads))
        self.keeper = Keeper(
            cache or Cache(None), self.reads, lambda: self.identity, self.prepare, workers=workers, track=track
        )
        self.pieces, self.gather = self.keeper.pieces, self.keeper.gather

    @property
    def alpha(self) -> Sequence[float]:
        """Evaluation weights [T]."""
        self.reads.note(("alpha",))
        return self._alpha

    @property
    def models_looked_at(self) -> int:
        """The number of artifacts shown side by side: certificates pay for it."""
        self.reads.note(("models_looked_at",))
        return len(self.subjects)

    @property
    def cache(self) -> Cache:
        """Where results are kept."""
        return self.keeper.cache

    @property
    def names(self) -> Sequence[str]:
        """The tasks."""
        return self.subjects[0].artifact.names

    @cached_property
    def identity(self) -> str:
        """Hash of what the suite is: its files, or, unless it is made of files alone, its content."""
        artifact = self.subjects[0].artifact
        if self.made_of_files:
            bare = () if self.plain_settings.labels else ("without labels",)  # what rests on labels is another thing
            return digest("files", artifact.suite, artifact.sources, *bare)
        return digest("content", self.loaded.content)

    @cached_property
    def loaded(self) -> Suite:
        """The suite where it was loaded, on the CPU, with every artifact checked against it: merges are made there."""
        suite = self.load() if self.plain_settings.labels else self.load().without_labels()
        for subject in self.subjects:
            check_match(suite, subject.artifact)
        return suite

    @cached_property
    def suite(self) -> Suite:
        """The suite, on the device, with every artifact checked against it."""
        return self.loaded if self.device == "cpu" else moved(self.loaded, self.device)

    def prepare(self) -> None:
        """Load here what processes would otherwise load one by one after they are forked."""
        _ = self.suite
        if self.workers > 1:
            warm_up()

    @property
    def vectors(self) -> TaskVectors:
        """θ_0 and the task vectors."""
        return self.suite.task_vectors

    @cached_property
    def blocks(self) -> Blocks:
        """The partition of the posteriors' σ: one block per layer, with stem and top."""
        return partition(self.vectors.base, "block")

    def weights(self, subject: Subject) -> Params:
        """θ_m on the device."""
        return {name: subject.artifact.merged[name].to(self.device) for name in self.vectors.base}

    def held_out(self, task: Task) -> Sample:
        """Return the test examples that everything but the accuracy rests on."""
        return subsample(task.test, self.settings.held_out, self.settings.seed)

    def check_suite(self) -> None:
        """Load the suite and check every artifact against it, also where all results are kept.

        Raises:
            InputError: there is none, or it is another one.
        """
        _ = self.loaded

    def check_splits(self, split: Split, what: str) -> None:
        """Check that every task has a split that ``what`` needs.

        Raises:
            InputError: one has not.
        """
        check_splits(self.suite.tasks, {split}, what)

    def check_labels(self, split: Split, what: str) -> None:
        """Check that every task has a split with labels, which ``what`` needs; a suite whose facts are kept stays away.

        Raises:
            InputError: one has not, or no label is to be looked at.
        """
        for name, fact in zip(self.names, self.facts(), strict=True):
            if split not in fact["sizes"]:
                self.check_splits(split, what)
            if split not in fact["labelled"]:
                unread = "report without --no-labels, or leave the section out"
                refuse_unlabelled(name, split, what, *([] if self.settings.labels else [unread]))

    def facts(self) -> list[Mapping[str, Any]]:
        """Per task: labels of test and validation (None: there are none), classes, split sizes, labelled splits.

        ``scored`` is what has one row of scores, an example or a position; ``text_bytes`` are those of the text that
        the test split's counted positions stand for (None: not known).
        """
        return self.pieces(Pieces("facts", (), self._facts, len(self.names)), "labels")

    @property
    def scored(self) -> Scored:
        """What of the tasks has one row of scores; a suite's tasks are of one kind."""
        return self.facts()[0]["scored"]

    def _facts(self, index: int) -> Mapping[str, Any]:
        task = self.suite.tasks[index]
        return {
            "test_labels": _labels(task.test),
            "validation_labels": _labels(task.validation) if "validation" in task.splits else None,
            "labelled": [split for split in task.splits if getattr(task, split).labels is not None],
            "classes": len(task.class_names),
            "learned_head": task.name in self.suite.learned_heads,
            "scored": "position" if task.per_position else "example",
            "text_bytes": _bytes(task),
            "sizes": {split: len(getattr(task, split)) for split in task.splits},
        }


def _bytes(task: Task) -> float | None:
    known = task.text_bytes.get("test") if isinstance(task, SequenceTask) else None
    return None if known is None else float(known.sum())


def _labels(sample: Sample) -> Tensor | None:
    return None if sample.labels is None else sample.labels.cpu()
