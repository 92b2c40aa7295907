"""Test figures of a merge beside its pretrained model and its experts, and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bounds.types import Params
from merging.commands.terminal import plain
from merging.measured import Measured
from merging.sequences import bits_per_byte, perplexity
from merging.suites import Suite
from merging.task import Task, labels_of

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


@dataclass(frozen=True, kw_only=True)
class TokenRow(TaskRow):
    """The same means over the ``test_tokens`` that count, where a network scores every position.

    ``bits_per_byte`` (model -> figure) is empty where the bytes of the text are not known.
    """

    test_tokens: int
    bits_per_byte: Mapping[str, float]


def evaluate(
    suite: Suite, merged: Params, track: Callable[[Iterable[Any], str], Iterable[Any]] = lambda steps, _: steps
) -> tuple[list[TaskRow], list[dict[str, Measured]]]:
    """Measure every task's test split with its three models; return the figures and, per task, model -> its sums.

    Exact figures of the test split; as estimates of the task's risk they have the split's sampling error.

    Raises:
        InputError: a test split without labels.
    """
    rows, found = [], []
    for index, task in track(list(enumerate(suite.tasks)), "test accuracy"):
        labels_of(task, "test", f"test {task.chosen_by.replace('_', '-')}")
        models = dict(zip(MODELS, (suite.task_vectors.base, suite.task_vectors.expert(index), merged), strict=True))
        by_model = {name: task.measured(params, "test", name) for name, params in models.items()}
        rows.append(_row(task, by_model))
        found.append(by_model)
    return rows, found


def _row(task: Task, by_model: Mapping[str, Measured]) -> TaskRow:
    row = TaskRow(
        name=task.name,
        classes=task.classes,
        train_examples=len(task.train) if "train" in task.splits else 0,
        test_examples=len(task.test),
        accuracy={name: m.accuracy for name, m in by_model.items()},
        cross_entropy={name: m.loss for name, m in by_model.items()},
    )
    if not task.per_position:
        return row
    bits = {name: found for name, m in by_model.items() if (found := bits_per_byte(m)) is not None}
    return TokenRow(**vars(row), test_tokens=int(by_model["merged"].positions.sum()), bits_per_byte=bits)


def mean(values: Iterable[float]) -> float:
    """Unweighted mean."""
    values = list(values)
    return sum(values) / len(values)


def accuracy_table(rows: Sequence[TaskRow], title: str) -> Table:
    """Table of the rows and their mean: accuracy and cross-entropy, or perplexity and accuracy of the tokens."""
    tokens = [row for row in rows if isinstance(row, TokenRow)]
    if tokens:
        return _table(tokens, f"{title}: test perplexity, accuracy (%) of a token{', bits per byte' * _told(tokens)}")
    return _table(rows, f"{title}: test accuracy (%) and cross-entropy (nats)")


def _table(rows: Sequence[TaskRow], title: str) -> Table:
    table = Table(title=plain(title, "table.title"))
    table.add_column("task")
    table.add_column("tokens" if isinstance(rows[0], TokenRow) else "n", justify="right")
    for model in MODELS:
        table.add_column(model, justify="right")
    for row in rows:
        size = row.test_tokens if isinstance(row, TokenRow) else row.test_examples
        table.add_row(plain(row.name), str(size), *(_cell([row], model) for model in MODELS))
    table.add_section()
    table.add_row("mean over tasks", "", *(_cell(rows, model) for model in MODELS))
    return table


def _told(rows: Sequence[TokenRow]) -> bool:
    """Whether the bytes of every task's text are known."""
    return all(row.bits_per_byte for row in rows)


def _cell(rows: Sequence[TaskRow], model: str) -> str:
    """Figures of a model, means over tasks; the perplexity is that of the mean cross-entropy."""
    accuracy, loss = (mean(getattr(row, name)[model] for row in rows) for name in ("accuracy", "cross_entropy"))
    tokens = [row for row in rows if isinstance(row, TokenRow)]
    if not tokens:
        return f"{100 * accuracy:.1f}  {loss:.3f}"
    bits = f"  {mean(row.bits_per_byte[model] for row in tokens):.3f}" if _told(tokens) else ""
    return f"{perplexity(loss):.2f}  {100 * accuracy:.1f}{bits}"
