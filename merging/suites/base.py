"""What a suite is: task vectors, their tasks, and the files they came from; what is checked once, at its door."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch

from bounds.types import Inputs, leaves, refuse
from merging.task import SPLITS, Task, check_tasks
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class Suite:
    """Experts with their tasks, in one order; ``sources`` maps each file (or generator) to its sha256 (or seed).

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


def shared_examples(task: Task) -> list[str]:
    """Describe every pair of splits that have an example in common: how many there are, and where the first is."""
    rows = {split: row_hashes(getattr(task, split).inputs) for split in SPLITS}
    result = []
    for first, second in itertools.combinations(SPLITS, 2):
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
