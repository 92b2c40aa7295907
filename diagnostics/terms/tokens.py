"""What is measured of a model that scores every position: sums over the counted positions of each example.

Scores come batch by batch and are never held: [all positions, V] numbers. Within a batch they are widened to float64 a
few rows at a time. Two models are compared position by position on the whole of their distributions, not on the
likeliest classes of one: a divergence of coarsened distributions is a lower bound, and (8) needs an upper one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bounds.distillation import Divergences, divergences
from bounds.scores import cross_entropy, probabilities, smoothed_cross_entropy, zero_one_loss
from bounds.sequences import example_means
from bounds.types import Params, Sample
from merging.measured import Where
from merging.sequences import IGNORED
from merging.task import Task

ROWS = 1 << 22
"""Scores that are widened to float64 at a time."""
Sums = Mapping[str, Tensor]
"""Of N examples [N], float64: ``positions`` that count, and of each of them ``cross_entropy`` (nats), ``smoothed``
cross-entropy (19) and ``wrong``, added up."""


class Adding:
    """Adds up values of rows into the examples that the rows belong to."""

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self.sums: dict[str, Tensor] = {}

    def rows(self, measure: Callable[..., Mapping[str, Tensor]], where: Where, *scores: Tensor) -> None:
        """Add ``measure(*scores, where)`` of rows of scores [M, V], some rows at a time."""
        size = max(1, ROWS // scores[0].shape[-1])
        for start in range(0, len(scores[0]), size):
            part = slice(start, start + size)
            here = tuple(index[part] for index in where)
            for name, values in measure(*(s[part].double() for s in scores), here).items():
                total = self.sums.setdefault(name, torch.zeros(self._examples, dtype=torch.float64))
                total.index_add_(0, here[0].cpu(), values.double().cpu())


@torch.no_grad()
def figures(task: Task, theta: Params, sample: Sample, split: str, model: str, floor: float) -> Sums:
    """Return what a model does on labelled examples of a split. Exact.

    Args:
        task: with scores at every position.
        theta: θ.
        sample: with labels.
        split: whose examples, for errors.
        model: whose weights, for errors.
        floor: ε of the smoothed cross-entropy.
    """
    added, labels = Adding(len(sample)), sample.labels
    assert labels is not None, "whoever asks has checked that there are labels"

    def measure(scores: Tensor, here: Where) -> Mapping[str, Tensor]:
        true = labels.to(scores.device)[here]
        return {
            "positions": torch.ones_like(true),
            "cross_entropy": cross_entropy(scores, true),
            "smoothed": smoothed_cross_entropy(scores, true, floor),
            "wrong": zero_one_loss(scores, true),
        }

    for scores, where in task.rows(theta, sample, split, model):
        added.rows(measure, where, scores)
    return added.sums


@torch.no_grad()
def imitation(
    task: Task, teacher: Params, student: Params, sample: Sample, split: str, temperature: float = 1.0
) -> Divergences:
    """Compare a merge with its teacher at every counted position; means per example. No label is read. Exact.

    Args:
        task: with scores at every position.
        teacher: θ of the expert.
        student: θ_m.
        sample: examples; where they have labels, positions with one count, else those that are not masked out.
        split: whose examples, for errors.
        temperature: of the KL that was trained on.
    """
    added = Adding(len(sample))

    def measure(p: Tensor, q: Tensor, here: Where) -> Mapping[str, Tensor]:
        return {"positions": torch.ones(len(p)), **vars(divergences(p, q, temperature))}

    both = zip(task.rows(teacher, sample, split, "expert"), task.rows(student, sample, split, "merged"), strict=True)
    for (p, where), (q, _) in both:
        added.rows(measure, where, p, q)
    counts = added.sums.pop("positions")
    return Divergences(**{name: example_means(total, counts) for name, total in added.sums.items()})


@torch.no_grad()
def labelled_by(task: Task, teacher: Params, sample: Sample, split: str, seed: int) -> Sample:
    """Return examples with a label drawn from the teacher's probabilities at every position that counts."""
    generator, kept = torch.Generator().manual_seed(seed), task.counted(sample)
    assert kept is not None, "a task with scores at every position says which count"
    labels = torch.full(kept.shape, IGNORED, dtype=torch.int64, device=kept.device)
    for scores, where in task.rows(teacher, sample, split, "expert"):
        drawn = torch.multinomial(probabilities(scores.double()).cpu(), 1, generator=generator)[:, 0]
        labels[where] = drawn.to(labels.device)
    return Sample(sample.inputs, labels)
