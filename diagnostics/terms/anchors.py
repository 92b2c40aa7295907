"""The slack of the experts' own bounds at anchors θ_0 + cτ_j, example by example (docs/theory.md section 14).

Whatever is chosen (the best expert, the best c) is chosen on one half of the held-out examples and reported on the
other; what a bound owes to chance, the choice of η and C included, shows when the halves are drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.pac_bayes import qsb_constant
from bounds.theorems import AnchorStatistics, examples_for_slack, slack
from bounds.types import Estimate
from diagnostics.settings import ETA_GRID, GAMMA, Settings
from diagnostics.terms.experts import CHOOSING, REPORTING, chosen, guarded_eta, mean_over
from diagnostics.terms.linear import LinearTask, losses

ROUNDS = 8
"""How often the moments are read again, at most, while the n of a slack is looked for."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One expert's own bound at m = θ_0 + cτ with its chosen η and σ, as numbers of single examples.

    ``size`` = |S_j|, ``moved`` = ‖m - θ_0‖, ``price`` = ln(T G/δ). Training examples: ``own`` [n'] losses of f^lin at
    m, ``traces`` [M] Σσ_b² tr K_b. Held-out examples: ``risks`` [N] E_Q ℓ, ``flatness`` [N] Σσ_b² E_Q‖∇_b ℓ‖²,
    ``point`` [N] losses of f^lin at m itself. ``examples`` is the n at which the slack would be 1 nat (None: at none).
    """

    c: float
    size: int
    moved: float
    price: float
    eta: float
    kl: float
    own: Tensor
    traces: Tensor
    risks: Tensor
    flatness: Tensor
    point: Tensor
    examples: int | None = None

    def statistics(self, moments: slice) -> AnchorStatistics:
        """Return the same bound with one block of σ = 1, which has its noise, KL and flatness; C from ``moments``."""
        return AnchorStatistics(
            own_risk=mean_over(self.own, self.size),
            n=self.size,
            displacement_sq=(2.0 * self.kl,),
            kernel=(mean_over(self.traces, self.size),),
            gradient=(Estimate.of_mean(self.flatness[moments]),),
            sigma=(1.0,),
            eta=self.eta,
            qsb=qsb_constant(self.risks[moments]),
        )

    def slack(self, reported: slice = slice(None)) -> Estimate:
        """Return s_j as (5) has it: moments of the reporting half, L_j(Q_j) on the examples ``reported``."""
        risk = Estimate.of_mean(self.risks[reported])
        return slack(self.statistics(slice(REPORTING, None, 2)), risk, log_price=self.price, gamma=GAMMA)

    def on_half(self, half: int) -> Estimate:
        """Return s_j with moments and L_j(Q_j) of one half of the held-out examples alone."""
        part = slice(half, None, 2)
        return slack(self.statistics(part), Estimate.of_mean(self.risks[part]), log_price=self.price, gamma=GAMMA)


def anchor_at(
    world: LinearTask, expert: int, c: float, statistics: AnchorStatistics, paid: float, settings: Settings
) -> Anchor:
    """Choose η and σ at m = θ_0 + cτ as for the expert itself, whose ``statistics`` (c = 1) are known, and measure.

    Args:
        world: the linearised network on the expert's task; displacement ``expert`` is τ.
        expert: its number.
        c: where on the way from θ_0 to the expert.
        statistics: those of the expert.
        paid: price ln(T G/δ) in nats.
        settings: draws, seed.
    """
    own = world.own_losses(c)
    if c != 1:
        moved = tuple(c**2 * d for d in statistics.displacement_sq)
        statistics = chosen(
            world, expert, own=own, displacement_sq=moved, size=statistics.n, paid=paid, settings=settings, scale=c
        )
    draws = world.posterior_scores(expert, statistics.sigma, settings.draws, settings.seed, c)
    squares = torch.tensor(statistics.sigma, dtype=torch.float64).square()
    return Anchor(
        c=c,
        size=statistics.n,
        moved=math.sqrt(sum(statistics.displacement_sq)),
        price=paid,
        eta=statistics.eta,
        kl=statistics.kl,
        own=own,
        traces=world.train_trace @ squares,
        risks=losses(draws, world.labels),
        flatness=world.gradient_moments(draws) @ squares,
        point=losses(world.scores(expert, c), world.labels),
        examples=_examples_for_a_nat(world, expert, c, statistics, paid, settings),
    )


def _examples_for_a_nat(
    world: LinearTask, expert: int, c: float, statistics: AnchorStatistics, paid: float, settings: Settings
) -> int | None:
    """Solve slack = 1 nat for n; moments, C and L_j(Q_j) are read again at the σ found, until n stays within 1 %."""
    before, sigma = math.inf, statistics.sigma
    for _ in range(ROUNDS):
        draws = world.posterior_scores(expert, sigma, settings.draws, settings.seed, c)
        risks, gradients = losses(draws, world.labels), world.gradient_moments(draws)
        reported = slice(REPORTING, None, 2)
        moments = tuple(Estimate.of_mean(column) for column in gradients[reported].T)
        now = replace(statistics, gradient=moments, qsb=qsb_constant(risks[reported]), eta=min(ETA_GRID))
        found = examples_for_slack(now, float(risks.mean()), log_price=paid, eta_grid=ETA_GRID, gamma=GAMMA)
        if found is None or abs(found.n - before) <= 0.01 * before < math.inf:
            return None if found is None else found.n
        before, sigma = found.n, found.sigma
    return int(before)


@dataclass(frozen=True)
class Choice:
    """What was best on the choosing half: its ``place``, and its slack there (too small) and on the other half."""

    place: int
    chosen: Estimate
    reported: Estimate


def best_of(anchors: Sequence[Anchor]) -> Choice:
    """Return the anchor of least slack by the choosing half of its held-out examples, with its slack on the other."""
    found = [anchor.on_half(CHOOSING) for anchor in anchors]
    place = min(range(len(found)), key=lambda j: found[j].value)
    return Choice(place, found[place], anchors[place].on_half(REPORTING))


def halves(examples: int, count: int, seed: int) -> Tensor:
    """Return ``count`` random halves of ``examples`` examples: [count, examples], True in the half."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, examples, generator=generator).argsort(dim=1)
    return order < examples // 2


def half_means(values: Tensor, half: Tensor) -> Tensor:
    """Return the mean of values [N] over every half [R, N]."""
    weights = half.double()
    return weights @ values / weights.sum(dim=1)


def repeated(anchor: Anchor, reported: Tensor, seed: int) -> Tensor:
    """Return the slack [R] when the halves are drawn again: η chosen on one, C, moments and L_j(Q_j) of the other.

    Training examples are halved alike, unless they are all of S_j; σ is the anchor's. The spread of such half-samples
    is that of a mean over all examples (docs/theory.md section 14).

    Args:
        anchor: the expert's.
        reported: the reporting halves [R, N'] of the first N' held-out examples.
        seed: of the training examples' halves.
    """
    count, examples = reported.shape
    risks, flatness = anchor.risks[:examples], anchor.flatness[:examples]

    def training(values: Tensor, shift: int) -> Tensor:
        whole = len(values) == anchor.size
        drawn = halves(len(values), count, seed + shift)
        return values.mean().expand(count) if whole else half_means(values, drawn)

    own, noise = training(anchor.own, 1), GAMMA / 2 * training(anchor.traces, 2)
    eta = torch.tensor(ETA_GRID, dtype=torch.float64).unsqueeze(1)

    def brace(qsb: Tensor, flat: Tensor) -> Tensor:
        """[η, R]."""
        a = 1 / (1 - eta * qsb / 2)
        return a * (own + noise + (anchor.kl + anchor.price) / (eta * anchor.size)) + eta / 2 * a * flat

    def moments(half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        risk = half_means(risks, half)
        return half_means(risks.square(), half) / risk, half_means(flatness, half), risk

    qsb, flat, _ = moments(~reported)
    choice = brace(qsb, flat).masked_fill(eta * qsb >= 2, math.inf).argmin(dim=0)
    qsb, flat, risk = moments(reported)
    kept = [guarded_eta(ETA_GRID[int(k)], float(c)) for k, c in zip(choice, qsb, strict=True)]
    rows = torch.tensor([ETA_GRID.index(value) for value in kept])
    return brace(qsb, flat).gather(0, rows.unsqueeze(0))[0] - risk


def spread(values: Tensor) -> Estimate:
    """Return the mean over repetitions [R] and √2 times their standard deviation: the error of one half-sample."""
    return Estimate(float(values.mean()), math.sqrt(2) * float(values.std()), len(values), "estimated")
