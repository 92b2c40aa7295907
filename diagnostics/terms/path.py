"""The bound along θ(s) = θ_0 + s·d: every reading and term at every distance (docs/theory.md, sections 6 and 9)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bounds.heterogeneity import cross_risk
from bounds.scores import zero_one_loss
from bounds.theorems import AnchorStatistics, Corrected, Experts, ReadAs, Weights, theorem2
from bounds.types import Bound, Estimate, Params, weighted_sum
from diagnostics.terms import experts as expert_side
from diagnostics.terms import linear as linear_world
from diagnostics.terms import merge as merge_terms
from diagnostics.terms import network as network_world
from merging.params import combine, norm
from merging.suites import Suite

RESIDUAL_TOLERANCE = 0.1
"""The NTK radius is the distance at which the residual first crosses this value (docs/theory.md, section 9)."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One point θ(s) = θ_0 + s·d: distance, the network's risk and error there, the bounds, the linearisation.

    ``risk`` and ``error`` are the real network's on the held-out subsample, ``linear_risk`` is f^lin's; ``bounds`` maps
    a reading to the value of (5), ``terms`` a reading to the values of its terms and ``gaps`` a reading to bound -
    risk (the assumed-linear reading where it was asked for); ``task_risks`` [T] is the network's risk per task;
    ``transfer`` is ε⁺, ``residual`` ‖f - f^lin‖/‖f - f_0‖. Risks are cross-entropies in nats. Where they were asked for
    (else None), α-weighted means over tasks: ``rotation`` S(K_0, K_s) and ``relative_change`` ‖K_s - K_0‖/‖K_0‖ of the
    kernel, ``sharpness`` the increase of the risk (nats) along the SAM step of radius ρ.
    """

    s: float
    distance: float
    risk: Estimate
    error: float
    linear_risk: Estimate
    transfer: Estimate
    residual: float
    bounds: Mapping[str, float]
    gaps: Mapping[str, float]
    terms: Mapping[str, Mapping[str, float]]
    task_risks: tuple[float, ...] = ()
    rotation: float | None = None
    relative_change: float | None = None
    sharpness: float | None = None


@dataclass(frozen=True)
class AtPoint:
    """What the bounds at one point are made of."""

    network: merge_terms.NetworkAtPoint
    assumed: merge_terms.MergeTerms | None
    linear: merge_terms.MergeTerms
    transfer: merge_terms.Transfer


@dataclass(frozen=True, kw_only=True)
class ExpertSide:
    """All that (5) knows before a merge is given: the linearised tasks, the posteriors, their statistics, weights.

    ``worlds[i].tangents`` are J(x)τ_1..J(x)τ_T; ``centre`` is θ_β = θ_0 + Σ_j β_j τ_j. ``reported`` are the held-out
    examples that terms are measured on: all, or the half on which nothing was chosen. The cross-risks are of these.
    """

    worlds: Sequence[linear_world.LinearTask]
    posteriors: expert_side.LinearPosteriors
    draws: network_world.PosteriorDraws
    linear: Experts[AnchorStatistics]
    assumed: Experts[AnchorStatistics]
    centre: Params
    weights: Weights
    delta: float
    trivial_risk: float
    reported: slice = field(default_factory=lambda: slice(None))

    def on_reported(self) -> ExpertSide:
        """Return the side on the reported examples alone; choices stay as they are."""
        part = self.reported
        if part == slice(None):
            return self
        worlds = [world.part(part) for world in self.worlds]
        scores = [[draws[:, part] for draws in row] for row in self.posteriors.scores]
        posteriors, draws = expert_side.LinearPosteriors(scores), self.draws.part(part)
        return replace(
            self,
            worlds=worlds,
            posteriors=posteriors,
            draws=draws,
            linear=replace(self.linear, cross=cross_risk(expert_side.risks(worlds, posteriors))),
            assumed=replace(self.assumed, cross=cross_risk(draws.losses)),
            reported=slice(None),
        )


@dataclass(frozen=True)
class Path:
    """The path θ(s) = θ_0 + s·d. ``worlds`` are the expert side's with J(x)d as their last displacement."""

    suite: Suite
    side: ExpertSide
    worlds: Sequence[linear_world.LinearTask]
    displacement: Params

    def weights(self, s: float) -> Params:
        """Return θ(s)."""
        return combine(self.suite.task_vectors.base, self.displacement, s)

    def bounds(self, s: float, network: merge_terms.NetworkAtPoint) -> tuple[tuple[Bound, ...], AtPoint]:
        """Return the readings at s, and what they were made of: all three, or two without the network's derivatives."""
        side = self.side
        linear = merge_terms.linearised_terms(self.worlds, side.posteriors, s, side.weights.alpha)
        transfer = merge_terms.transfer_terms(self.worlds, network, s, side.weights.alpha)
        readings: list[tuple[Experts[AnchorStatistics], merge_terms.MergeTerms, ReadAs]] = [
            (side.linear, linear, "linearised"),
            (side.linear, linear, Corrected(transfer.positive)),
        ]
        assumed = None
        if network.tangents:
            assumed = merge_terms.assumed_linear_terms(self.worlds, network, side.draws, side.weights)
            readings.insert(0, (side.assumed, assumed, "assumed-linear"))
        bounds = tuple(
            theorem2(
                experts,
                terms.merge,
                side.weights,
                delta=side.delta,
                reading=reading,
                trivial_risk=side.trivial_risk,
            )
            for experts, terms, reading in readings
        )
        return bounds, AtPoint(network, assumed, linear, transfer)

    def point(self, s: float, *, assumed: bool = False) -> SweepPoint:
        """Return everything the sweep shows at s; ``assumed``: the assumed-linear reading, too."""
        tasks, theta = self.suite.tasks, self.weights(s)
        start = merge_terms.NetworkAtPoint([world.scores0 for world in self.worlds])
        if assumed:
            network = merge_terms.network_at(tasks, self.worlds, theta, self.side.centre)
        else:
            network = merge_terms.scores_at(tasks, self.worlds, theta) if s else start
        if s == 0:  # θ_0: what is known, to the bit, so that nothing divides rounding by rounding
            network = replace(network, scores=start.scores)
        bounds, at = self.bounds(s, network)
        wrong = [
            float(zero_one_loss(scores, world.labels).mean())
            for scores, world in zip(at.network.scores, self.worlds, strict=True)
        ]
        losses = [
            linear_world.losses(scores, world.labels)
            for scores, world in zip(at.network.scores, self.worlds, strict=True)
        ]
        risk = weighted_sum([Estimate.of_mean(values) for values in losses], self.side.weights.alpha)
        return SweepPoint(
            s=s,
            distance=s * norm(self.displacement),
            risk=risk,
            error=sum(a * w for a, w in zip(self.side.weights.alpha, wrong, strict=True)),
            linear_risk=at.linear.risk,
            transfer=at.transfer.positive,
            residual=at.transfer.residual,
            bounds={bound.reading: bound.value for bound in bounds},
            gaps={bound.reading: bound.value - risk.value for bound in bounds},
            terms={bound.reading: {t.name: t.estimate.value for t in bound.terms} for bound in bounds},
            task_risks=tuple(float(values.mean()) for values in losses),
        )


def ntk_radius(
    distances: Sequence[float], residuals: Sequence[float], tolerance: float = RESIDUAL_TOLERANCE
) -> float | None:
    """Smallest distance at which the residual reaches ``tolerance``, interpolated linearly; None if it never does.

    At distance 0 the residual is 0, also where the grid begins farther out.

    Source: docs/theory.md, section 9. Status: estimated (examples and grid).
    """
    points = [(0.0, 0.0), *zip(distances, residuals, strict=True)]
    for (d0, r0), (d1, r1) in itertools.pairwise(points):
        if r0 < tolerance <= r1:
            return d0 + (d1 - d0) * (tolerance - r0) / (r1 - r0)
    return None
