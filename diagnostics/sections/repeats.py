"""What the bound owes to chance: the same bound with the halves of its examples drawn again, and with fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Estimate
from diagnostics.terms.anchors import Anchor, half_means, halves, repeated, spread

LEAST = 8
"""Held-out examples that can be halved twice: a choosing and a reporting half of four."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Risk of f^lin, slack, ε⁺ and their sum over random halvings of the first ``examples`` held-out examples per task.

    Every halving chooses η on one half and measures all on the other, with half of the training examples. Values are
    means over the halvings, ``stderr`` is √2 times their standard deviation: the error of a value from one halving,
    choice of η and C included; σ is held. ``n`` is the number of halvings.
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
        splits: random halvings.
        seed: of the halvings.
    """
    most = max(len(values) for values in linear)
    sizes = [size for size in dict.fromkeys((most // 4, most // 2, most)) if size >= LEAST or size == most]
    found = []
    for size in sizes:
        slack, risk, error = (torch.zeros(splits, dtype=torch.float64) for _ in range(3))
        for t, anchor in enumerate(anchors):
            few = min(size, len(linear[t]))
            half = halves(few, splits, seed + 3 * t)
            slack += beta[t] * repeated(anchor, half, seed + 3 * t)
            risk += alpha[t] * half_means(linear[t][:few], half)
            error += alpha[t] * half_means(transfer[t][:few], half)
        parts = [spread(values) for values in (risk, slack, error, risk + slack + error)]
        names = ("linear_risk", "slack", "transfer", "total")
        found.append(Repeats(examples=size, **dict(zip(names, parts, strict=True))))
    return tuple(found)
