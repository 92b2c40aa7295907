"""What a suite is by its content: a hash for results that are kept, a fingerprint that another machine recognises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bounds.types import Params, Sample
from merging import records
from merging.task import Task
from merging.task_vectors import TaskVectors

FEW = 2
"""Test examples of each task that are scored to tell one forward function from another: code has no hash."""


def content_digest(name: str, vectors: TaskVectors, tasks: Sequence[Task]) -> str:
    """Return the sha256 of a suite: weights, names, every example, and what θ_0 scores on a few of them.

    The same on every number of threads of one machine; other processors may round scores and weights otherwise.
    """
    return records.digest(
        {
            "name": name,
            "base": dict(vectors.base),
            "experts": [dict(delta.items()) for delta in vectors.deltas],
            "tasks": [_described(task, vectors.base) for task in tasks],
        }
    )


def _described(task: Task, base: Params) -> list[Any]:
    splits = [[split, *_content(getattr(task, split))] for split in task.splits]
    return [task.name, list(task.class_names), splits, _few_scores(task, base), *task.particulars]


def _content(sample: Sample) -> list[Any]:
    return [sample.inputs if isinstance(sample.inputs, Tensor) else dict(sample.inputs), sample.labels]


def _few_scores(task: Task, params: Params) -> Tensor:
    """Scores of a few test examples, on one thread: the bits of a product depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return task.scores(params, task.test.take(slice(FEW)).inputs, "test", "suite's")
    finally:
        torch.set_num_threads(threads)


def fingerprint(vectors: TaskVectors, tasks: Sequence[Task]) -> Tensor:
    """Return some figures of every task [T, 10]: ‖τ‖, a sum over the test labels, scores of θ_0 and of the expert.

    Scores are those of a few test examples: their mean and the one at the label. Figures that need labels are NaN where
    there are none. Not exact: a suite that is made again elsewhere has the same up to rounding, another expert, head or
    test split has not, as a rule.
    """
    rows = []
    for index, task in enumerate(tasks):
        delta, labels = vectors.deltas[index], task.test.labels
        size = sum(float(torch.linalg.vector_norm(delta[name], dtype=torch.float64)) ** 2 for name in delta) ** 0.5
        row = [size, math.nan if labels is None else _place_sum(labels)]
        for params in (vectors.base, vectors.expert(index)):
            scores = _few_scores(task, params).double().cpu()
            scores = torch.cat([scores, scores[:1]])[:FEW]  # of a split with one example, twice
            row += [*scores.flatten(start_dim=1).mean(dim=1).tolist(), *_at_labels(scores, labels)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _place_sum(labels: Tensor) -> float:
    """Sum of the labels, each times its place from 1: another order is another sum."""
    return float((torch.arange(1, labels.numel() + 1, device=labels.device) * labels.flatten()).sum())


def _at_labels(scores: Tensor, labels: Tensor | None) -> list[float]:
    """Return the scores at the labels of FEW examples (the mean over counted positions), NaN without labels."""
    if labels is None:
        return [math.nan] * FEW
    few = torch.cat([labels.cpu(), labels[:1].cpu()])[:FEW]
    found = scores.gather(-1, few.clamp(min=0)[..., None])[..., 0].where(few >= 0, torch.nan)
    return found.view(FEW, -1).nanmean(dim=1).tolist()


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two fingerprints are of one suite, up to rounding; figures that only one of them has are left out."""
    if first.shape != second.shape:
        return False
    both = ~(first.isnan() | second.isnan())
    return torch.allclose(first[both], second[both], rtol=1e-3, atol=1e-3)
