"""Merging of fine-tuned models: task vectors, coefficients, methods, artifacts and suites."""

from merging.methods import METHODS, merge
from merging.task import Task
from merging.task_vectors import TaskVectors, contract, merged

__all__ = ["METHODS", "Task", "TaskVectors", "contract", "merge", "merged"]
