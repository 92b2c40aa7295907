"""What a suite is: task vectors, their tasks, and the files they came from; what is checked once, at its door."""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bounds.types import Inputs, Sample, leaves, refuse
from merging import records
from merging.models import Network, TaskHead
from merging.named import is_named
from merging.suites.content import content_digest, fingerprint
from merging.task import Task, check_tasks
from merging.task_vectors import TaskVectors

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Suite:
    """Experts with their tasks, in one order; ``sources`` maps each file (or generator) to its sha256 (or seed).

    ``origin`` is what :func:`merging.suites.load` finds the suite by: a name of the table, a file,
    package.module:function; empty for a suite that was made in memory. ``network`` and the tasks' frozen ``heads`` are
    there where the kind of model is known, which then can be written for its library; ``notes`` say of the
    base and of tasks what was renamed or left unused in their files. ``learned_heads`` are the tasks whose frozen head
    was trained on S_t: (5) assumes that it was not, and the report says where it was.

    A figure of a test split, and a certificate of a validation split, are true of examples that nothing else has seen:
    the splits of a task must be disjoint. Every example is hashed once (about 1 GB/s) to see that they are.
    ``shared_examples="name"`` lets a data set pass that holds the same example in two splits, as sets of short texts
    do, with a warning that counts them.

    Raises:
        InputError: tasks that are not those of the task vectors, in order; an example in two splits of a task.
    """

    name: str
    task_vectors: TaskVectors
    tasks: Sequence[Task]
    _: KW_ONLY
    sources: Mapping[str, str] = field(default_factory=dict)
    shared_examples: Literal["refuse", "name"] = "refuse"
    origin: str = ""
    network: Network | None = None
    heads: Mapping[str, TaskHead] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    learned_heads: AbstractSet[str] = frozenset()

    def __post_init__(self) -> None:
        check_tasks(self.task_vectors.names, self.tasks)
        for task in self.tasks:
            for found in shared_examples(task):
                if self.shared_examples == "name":
                    warnings.warn(f"task {task.name!r}: {found}; its figures lean on these", stacklevel=3)
                else:
                    refuse(
                        f"task {task.name!r}",
                        expected="splits that have no example in common",
                        got=found,
                        cure='take them out of one, or pass Suite(..., shared_examples="name") to be warned instead',
                    )

    @property
    def made_of_files(self) -> bool:
        """Whether the sha256 of its ``sources`` say all there is to say of it: no code and no user's hand made it."""
        return all_hashed(self.sources) and bool(self.origin) and not is_named(self.origin)

    @cached_property
    def content(self) -> str:
        """Hash of weights, examples and a few scores (:func:`merging.suites.content.content_digest`)."""
        return content_digest(self.name, self.task_vectors, tuple(self.tasks))

    @property
    def identity(self) -> str:
        """Hash of what the suite is: of its files where it is made of nothing else, else of its content."""
        said = {"name": self.name, "sources": dict(self.sources)}
        return records.digest(said if self.made_of_files else {**said, "content": self.content})

    @cached_property
    def fingerprint(self) -> Tensor | None:
        """What an artifact keeps to recognise the suite by, where its files do not say it all."""
        return None if self.made_of_files else fingerprint(self.task_vectors, tuple(self.tasks))

    @property
    def per_position(self) -> bool:
        """Whether its tasks have a row of scores for every position of an example: all have, or none."""
        return any(task.per_position for task in self.tasks)

    @property
    def unlabelled_tasks(self) -> tuple[str, ...]:
        """The tasks whose test split has no labels."""
        return tuple(task.name for task in self.tasks if task.test.labels is None)

    def without_labels(self) -> Suite:
        """Return the suite with the inputs of every split and no label; labels are not looked at, nor inputs again."""
        bare = object.__new__(Suite)
        for part in fields(self):
            object.__setattr__(bare, part.name, getattr(self, part.name))
        tasks = [t.changed(**{split: Sample(getattr(t, split).inputs) for split in t.splits}) for t in self.tasks]
        object.__setattr__(bare, "tasks", tasks)
        return bare

    def found_by(self, origin: str) -> Suite:
        """Return the suite with its ``origin``; its examples are not compared again."""
        object.__setattr__(self, "origin", origin)
        return self


def all_hashed(sources: Mapping[str, str]) -> bool:
    """Whether every source is given by a sha256, and there is one."""
    return bool(sources) and all(_SHA256.fullmatch(value) for value in sources.values())


def shared_examples(task: Task) -> list[str]:
    """Describe every pair of splits that have an example in common: how many there are, and where the first is."""
    rows = {split: row_hashes(getattr(task, split).inputs) for split in task.splits}
    result = []
    for first, second in itertools.combinations(task.splits, 2):
        where = {row: index for index, row in reversed(list(enumerate(rows[first])))}
        shared = [index for index, row in enumerate(rows[second]) if row in where]
        if shared:
            pair = f"example {where[rows[second][shared[0]]]} of {first} is example {shared[0]} of {second}"
            result.append(f"{len(shared)} of {len(rows[second])} examples of {second} are in {first}, too ({pair})")
    return result


def row_hashes(inputs: Inputs) -> list[bytes]:
    """Return a hash of every example's bytes, over all tensors of the inputs (read where they lie, one at a time)."""
    columns = [tensor.detach().reshape(len(tensor), -1).cpu() for tensor in leaves(inputs)]
    rows = [column.contiguous().view(torch.uint8).numpy() for column in columns]
    return [hashlib.blake2b(b"".join(map(bytes, parts)), digest_size=16).digest() for parts in zip(*rows, strict=True)]
