"""What a suite is: task vectors, their tasks, and the files they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class Suite:
    """Experts with their tasks, in one order; ``sources`` maps each file (or generator) to its sha256 (or seed)."""

    name: str
    task_vectors: TaskVectors
    tasks: Sequence[Task]
    sources: Mapping[str, str] = field(default_factory=dict)
