"""What the bound owes to chance: the same bound with the halves of its examples drawn again, and with fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Estimate
from diagnostics.terms.anchors import Anchor, drawn_halves, means, repeated, spread

LEAST = 8
"""Held-out examples that can be halved twice: a choosing and a reporting half of four."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Risk of f^lin, slack, ε⁺ and their sum when halves of the first ``examples`` held-out examples are drawn again.

    Every time a choosing and a reporting half are drawn with replacement, and the training examples anew; η is chosen
    on the one half, all else is measured on the other. Values are means over the repetitions, ``stderr`` is their
    standard deviation: the error of a value from one pair of halves, choice of η and C included; σ is held. ``n`` is
    the number of repetitions.
    """

    examples: int
    linear_risk: Estimate
    slack: Estimate
    transfer: Estimate
    total: Estimate


def compute(
    anchors: Sequence[Anchor],
    linear: Sequence[Tensor],
    transfer: Sequence[Tensor],
    alpha: Sequence[float],
    beta: Sequence[float],
    *,
    splits: int,
    seed: int,
) -> tuple[Repeats, ...]:
    """Repeat the bound on a quarter, a half and all of the held-out examples, where there are enough.

    Args:
        anchors: the experts (c = 1), one per task.
        linear: losses of f^lin at θ_m on each task's held-out examples.
        transfer: e⁺ there.
        alpha: weights of the tasks [T].
        beta: weights of the experts [T].
        splits: how often the halves are drawn.
        seed: of the draws.
    """
    most = max(len(values) for values in linear)
    sizes = [size for size in dict.fromkeys((most // 4, most // 2, most)) if size >= LEAST or size == most]
    found = []
    for size in sizes:
        slack, risk, error = (torch.zeros(splits, dtype=torch.float64) for _ in range(3))
        for t, anchor in enumerate(anchors):
            few = min(size, len(linear[t]))
            halves = drawn_halves(few, splits, seed + 3 * t)
            slack += beta[t] * repeated(anchor, halves, seed + 3 * t)
            risk += alpha[t] * means(linear[t], halves.reporting)
            error += alpha[t] * means(transfer[t], halves.reporting)
        parts = [spread(values) for values in (risk, slack, error, risk + slack + error)]
        names = ("linear_risk", "slack", "transfer", "total")
        found.append(Repeats(examples=size, **dict(zip(names, parts, strict=True))))
    return tuple(found)
