"""Merging of fine-tuned models: task vectors, coefficients, methods, artifacts and suites."""

from merging.methods import METHODS, merge
from merging.selection import Selection
from merging.sequences import SequenceTask
from merging.suites import load as load_suite
from merging.suites import suite_from_modules
from merging.task import Task
from merging.task_vectors import TaskVectors, contract, merged

__all__ = [
    "METHODS",
    "Selection",
    "SequenceTask",
    "Task",
    "TaskVectors",
    "contract",
    "load_suite",
    "merge",
    "merged",
    "suite_from_modules",
]
