"""Three experts with made-up statistics, and the terms of (5) written out."""

from collections.abc import Sequence

import torch

from bounds.heterogeneity import cross_risk
from bounds.theorems import AnchorStatistics, Experts, MergedModel, Weights
from bounds.types import Estimate

ALPHA, BETA, DELTA = (0.5, 0.2, 0.3), (0.1, 0.6, 0.3), 0.05
WEIGHTS = Weights(ALPHA, BETA)
FREE = MergedModel(None)


def estimate(value, stderr=0.01, n=50):
    return Estimate(value, stderr, n, "estimated")


def anchor(scale=1.0, n=400, eta=0.2, constant=1.5):
    return AnchorStatistics(
        own_risk=estimate(0.3 * scale),
        n=n,
        displacement_sq=(2.0 * scale, 0.0, 0.5),
        kernel=(estimate(9.0 * scale), estimate(4.0), estimate(1.0)),
        gradient=(estimate(0.7), estimate(5.0), estimate(0.2 * scale)),
        sigma=(0.2, 0.0, 0.4 * scale),
        eta=eta,
        qsb=estimate(constant),
    )


ANCHORS = (anchor(), anchor(0.8, 300, 0.3, 0.9), anchor(1.2, 900))


def losses(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(m, 3, generator=generator, dtype=torch.float64) for m in (40, 50, 60)]


def by_hand(a, price, gamma=0.5):
    """The four terms of one expert in (5), written out."""
    big_a = 1 / (1 - a.eta * a.qsb.value / 2)
    big_b = a.eta / (2 - a.eta * a.qsb.value)
    kl = sum(d / (2 * s**2) for d, s in zip(a.displacement_sq, a.sigma, strict=True) if d > 0)
    trace = sum(s**2 * k.value for s, k in zip(a.sigma, a.kernel, strict=True))
    flat = sum(s**2 * g.value for s, g in zip(a.sigma, a.gradient, strict=True))
    return (
        big_a * a.own_risk.value,
        big_a * gamma / 2 * trace,
        big_a * (kl + price) / (a.eta * a.n),
        big_b * flat,
    )


def experts(statistics: Sequence[AnchorStatistics] = ANCHORS, log_choices: float | Sequence[float] = 0.0):
    """The experts' side with the cross-risk of ``losses()``."""
    table = cross_risk([rows[:, : len(statistics)] for rows in losses()[: len(statistics)]])
    return Experts(statistics, table, log_choices)
