"""What is measured of a model on a split: sums over the counted positions of every example; what is kept of a teacher.

A classifier scores an example once, a network of sequences at every position. Where rows of scores come from is told by
``where``: the index of the example, and of the position where there are some, by which every tensor [N, ...] or
[N, L, ...] is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.coarse import coarsened
from bounds.scores import cross_entropy, kl, log_probabilities

Where = tuple[Tensor, ...]
"""Examples [M], or examples and positions [M] and [M]: what rows of scores belong to."""


@dataclass(frozen=True)
class Positions:
    """Where an example has many scores: which positions count, and the classes that are told apart at each.

    ``counted`` [N, L] (bool). ``classes`` [N, L, k] (int32) are the teacher's likeliest; None: all V.
    """

    counted: Tensor
    classes: Tensor | None = None

    def take(self, index: Tensor) -> Positions:
        """Return those of the examples at ``index``."""
        return Positions(self.counted[index], None if self.classes is None else self.classes[index])

    def to(self, device: torch.device) -> Positions:
        """Return the same on a device."""
        return Positions(self.counted.to(device), None if self.classes is None else self.classes.to(device))


@dataclass(frozen=True)
class Taught:
    """What is kept of an expert on N examples: its scores [N, C], or log-probabilities [N, L, k + 1] of events.

    With ``positions`` the last of the k + 1 events is all classes but the k of :class:`Positions` together
    (:mod:`bounds.coarse`), at the temperature that was asked for.
    """

    scores: Tensor
    positions: Positions | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Sums over the counted positions of every example [N], float64, on the CPU; an example of a classifier is one.

    ``correct`` counts positions whose largest score is at the label; ``cross_entropy`` and ``kl`` = KL(teacher ‖ model)
    are in nats, ``kl`` that of coarsened events where the teacher is kept so (no larger than the exact one);
    ``text_bytes`` are those of the text that the counted positions stand for. None: not known.
    """

    positions: Tensor
    correct: Tensor
    cross_entropy: Tensor
    kl: Tensor | None = None
    text_bytes: Tensor | None = None

    def mean(self, sums: Tensor) -> float:
        """Return the mean over all counted positions of what ``sums`` [N] adds up per example."""
        return float(sums.sum() / self.positions.sum())

    @property
    def accuracy(self) -> float:
        """Share of counted positions whose largest score is at the label, in 0..1."""
        return self.mean(self.correct)

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a counted position, in nats."""
        return self.mean(self.cross_entropy)


@torch.no_grad()
def measure(
    rows: Iterable[tuple[Tensor, Where]],
    labels: Tensor,
    taught: Taught | None = None,
    text_bytes: Tensor | None = None,
) -> Measured:
    """Add up what rows of scores say of N examples, a batch at a time: no more than a batch of scores is in memory.

    Args:
        rows: scores [M, C] with what they belong to, finite.
        labels: [N] or [N, L].
        taught: of a teacher on the same examples; None: no KL.
        text_bytes: [N], passed on.

    Status: exact figures of these examples.
    """
    sums = {name: torch.zeros(len(labels), dtype=torch.float64) for name in ("positions", "correct", "loss", "kl")}

    def add(name: str, examples: Tensor, values: Tensor) -> None:
        sums[name].index_add_(0, examples.cpu(), values.double().cpu())

    for scores, where in rows:
        here, exact = labels.to(scores.device)[where], scores.double()
        add("positions", where[0], torch.ones_like(here))
        add("correct", where[0], scores.argmax(dim=-1) == here)
        add("loss", where[0], cross_entropy(exact, here))
        if taught is not None:
            add("kl", where[0], _divergence(taught, exact, where))
    return Measured(
        positions=sums["positions"],
        correct=sums["correct"],
        cross_entropy=sums["loss"],
        kl=None if taught is None else sums["kl"],
        text_bytes=text_bytes,
    )


def _divergence(taught: Taught, scores: Tensor, where: Where) -> Tensor:
    """KL(teacher ‖ model) of rows [M], in the teacher's events."""
    teacher, positions = taught.scores[where].double(), taught.positions
    if positions is None:
        return kl(log_probabilities(teacher), log_probabilities(scores))
    classes = None if positions.classes is None else positions.classes[where]
    return kl(teacher, coarsened(scores, classes))
