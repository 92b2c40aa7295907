"""The name of :mod:`merging.commands.evaluation` before the houses; kept for one minor version."""

from merging.commands.evaluation import MODELS, TaskRow, accuracy_table, evaluate, mean

__all__ = ["MODELS", "TaskRow", "accuracy_table", "evaluate", "mean"]
