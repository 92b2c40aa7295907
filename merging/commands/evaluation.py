"""Test figures of a merge beside its pretrained model and its experts, and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from bounds.types import Params
from merging.commands.terminal import plain
from merging.suites import Suite
from merging.task import accuracy, cross_entropy, labels_of, score_task

MODELS = ("pretrained", "expert", "merged")


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """Test accuracy (0..1) and cross-entropy (nats) of the pretrained, expert and merged model on one task.

    ``train_examples`` is 0 where the suite has no training split.
    """

    name: str
    classes: int
    train_examples: int
    test_examples: int
    accuracy: Mapping[str, float]
    cross_entropy: Mapping[str, float]


def evaluate(
    suite: Suite, merged: Params, track: Callable[[Iterable[Any], str], Iterable[Any]] = lambda steps, _: steps
) -> tuple[list[TaskRow], list[dict[str, Tensor]]]:
    """Score every task's test split with its three models; return the figures and, per task, model -> scores [N, C].

    Exact figures of the test split; as estimates of the task's risk they have the split's sampling error.

    Raises:
        InputError: a test split without labels.
    """
    rows, scores = [], []
    for index, task in track(list(enumerate(suite.tasks)), "test accuracy"):
        labels = labels_of(task, "test", "test accuracy")
        models = dict(zip(MODELS, (suite.task_vectors.base, suite.task_vectors.expert(index), merged), strict=True))
        by_model = {name: score_task(task, params, task.test.inputs, "test", name) for name, params in models.items()}
        rows.append(
            TaskRow(
                name=task.name,
                classes=len(task.class_names),
                train_examples=len(task.train) if "train" in task.splits else 0,
                test_examples=len(labels),
                accuracy={name: accuracy(s, labels) for name, s in by_model.items()},
                cross_entropy={name: cross_entropy(s, labels) for name, s in by_model.items()},
            )
        )
        scores.append(by_model)
    return rows, scores


def mean(values: Iterable[float]) -> float:
    """Unweighted mean."""
    values = list(values)
    return sum(values) / len(values)


def accuracy_table(rows: Sequence[TaskRow], title: str) -> Table:
    """Table of the rows and their mean."""
    table = Table(title=plain(f"{title}: test accuracy (%) and cross-entropy (nats)", "table.title"))
    table.add_column("task")
    table.add_column("n", justify="right")
    for model in MODELS:
        table.add_column(model, justify="right")
    for row in rows:
        cells = [f"{100 * row.accuracy[m]:.1f}  {row.cross_entropy[m]:.3f}" for m in MODELS]
        table.add_row(plain(row.name), str(row.test_examples), *cells)
    table.add_section()
    means = [
        f"{100 * mean(r.accuracy[m] for r in rows):.1f}  {mean(r.cross_entropy[m] for r in rows):.3f}" for m in MODELS
    ]
    table.add_row("mean over tasks", "", *means)
    return table
