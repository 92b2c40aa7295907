"""The bound along θ(s) = θ_0 + s(θ_m - θ_0): every reading at every distance (docs/theory.md, sections 6 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bounds.single_model import Reading
from bounds.theorems import theorem2
from bounds.types import Bound, Estimate, Params
from diagnostics import anchors as expert_side
from diagnostics import linear_world, merge_terms, network_world
from merging.params import combine, norm
from merging.suites import Suite

RESIDUAL_TOLERANCE = 0.1
"""The NTK radius is the distance at which the residual first crosses this value (docs/theory.md, section 9)."""


@dataclass(frozen=True)
class SweepPoint:
    """One point θ(s) = θ_0 + s(θ_m - θ_0): distance, the network's risk and error there, the bounds, the linearisation.

    ``risk`` and ``error`` are the real network's on the held-out subsample, ``linear_risk`` is f^lin's; ``bounds`` maps
    a reading to the value of (5); ``terms`` maps a reading to its gap and gain; ``transfer`` is ε⁺, ``residual``
    ‖f - f^lin‖/‖f - f_0‖.
    """

    s: float
    distance: float
    risk: Estimate
    error: float
    linear_risk: Estimate
    transfer: Estimate
    residual: float
    bounds: Mapping[str, float]
    terms: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class AtPoint:
    """What the bounds at one point are made of."""

    network: merge_terms.NetworkAtPoint
    assumed: merge_terms.MergeTerms
    linear: merge_terms.MergeTerms
    transfer: merge_terms.Transfer


@dataclass(frozen=True)
class Path:
    """The path θ(s) = θ_0 + s(θ_m - θ_0) and all that (5) needs at any of its points: the experts' side is fixed."""

    suite: Suite
    worlds: Sequence[linear_world.LinearTask]
    posteriors: expert_side.LinearPosteriors
    draws: network_world.PosteriorDraws
    linear: expert_side.Anchors
    assumed: expert_side.Anchors
    displacement: Params
    alpha: Sequence[float]
    beta: Sequence[float]
    delta: float
    trivial_risk: float

    def bounds(self, s: float) -> tuple[tuple[Bound, ...], AtPoint]:
        """Return the three readings at s, and what they were made of."""
        vectors = self.suite.task_vectors
        theta = combine(vectors.base, self.displacement, s)
        centre = vectors.base
        for delta, weight in zip(vectors.deltas, self.beta, strict=True):
            centre = combine(centre, delta, weight)
        network = merge_terms.network_at(self.suite.tasks, self.worlds, theta, centre)
        assumed = merge_terms.assumed_linear_terms(self.worlds, network, self.draws, self.alpha, self.beta)
        linear = merge_terms.linearised_terms(self.worlds, self.posteriors, s, self.alpha, self.beta)
        transfer = merge_terms.transfer_terms(self.worlds, network, s, self.alpha)
        bounds = (
            self._bound("assumed-linear", self.assumed, assumed, None),
            self._bound("linearised", self.linear, linear, None),
            self._bound("corrected", self.linear, linear, transfer.positive),
        )
        return bounds, AtPoint(network, assumed, linear, transfer)

    def _bound(
        self,
        reading: Reading,
        side: expert_side.Anchors,
        at: merge_terms.MergeTerms,
        transfer: Estimate | None,
    ) -> Bound:
        return theorem2(
            side.statistics,
            side.cross,
            self.alpha,
            self.beta,
            at.gap,
            at.gain,
            delta=self.delta,
            log_price=side.log_price,
            reading=reading,
            transfer_error=transfer,
            trivial_risk=self.trivial_risk,
            gap_per_expert=at.gap_per_expert,
            gain_per_expert=at.gain_per_expert,
        )

    def point(self, s: float) -> SweepPoint:
        """Everything the sweep shows at s."""
        bounds, at = self.bounds(s)
        wrong = [
            float((scores.argmax(dim=1) != world.labels).double().mean())
            for scores, world in zip(at.network.scores, self.worlds, strict=True)
        ]
        return SweepPoint(
            s=s,
            distance=s * norm(self.displacement),
            risk=at.assumed.risk,
            error=sum(a * w for a, w in zip(self.alpha, wrong, strict=True)),
            linear_risk=at.linear.risk,
            transfer=at.transfer.positive,
            residual=at.transfer.residual,
            bounds={bound.reading: bound.value for bound in bounds},
            terms={
                "assumed-linear": {"gap": at.assumed.gap.value, "gain": at.assumed.gain.value},
                "linearised": {"gap": at.linear.gap.value, "gain": at.linear.gain.value},
            },
        )


def ntk_radius(
    distances: Sequence[float], residuals: Sequence[float], tolerance: float = RESIDUAL_TOLERANCE
) -> float | None:
    """Smallest distance at which the residual reaches ``tolerance``, interpolated linearly; None if it never does.

    Source: docs/theory.md, section 9. Status: estimated (examples and grid).
    """
    for (d0, r0), (d1, r1) in zip(
        zip(distances, residuals, strict=True), list(zip(distances, residuals, strict=True))[1:], strict=False
    ):
        if r0 < tolerance <= r1:
            return d0 + (d1 - d0) * (tolerance - r0) / (r1 - r0)
    return None
