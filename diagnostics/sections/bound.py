"""The bound (5) on the risk of the merge in its three readings, with the experts' side it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bounds.theorems import vertices
from bounds.theorems.single_model import READINGS
from bounds.types import Bound, Estimate, Status
from diagnostics.subject import Subject
from diagnostics.terms.experts import Anchors
from diagnostics.workspace import Workspace
from merging.params import norm


@dataclass(frozen=True)
class TermRow:
    """One summand of a bound; ``share`` is its value over the sum of all absolute values."""

    symbol: str
    name: str
    equation: str
    estimate: Estimate
    per_task: tuple[Estimate, ...]
    note: str
    share: float


@dataclass(frozen=True)
class ReadingRow:
    """One reading of the bound: its value (nats), the status of its worst term, its terms."""

    name: str
    reading: str
    value: float
    stderr: float
    status: Status
    vacuous: bool
    delta: float
    assumptions: tuple[str, ...]
    terms: tuple[TermRow, ...]


@dataclass(frozen=True)
class ExpertRow:
    """One expert in one reading: posterior (η, σ per block, KL in nats), own risk, κ̂ per block, C, E‖∇_b ℓ‖²."""

    own_risk: Estimate
    n: int
    distance: float
    displacement_sq: tuple[float, ...]
    kernel: tuple[Estimate, ...]
    gradient: tuple[Estimate, ...]
    sigma: tuple[float, ...]
    eta: float
    qsb: Estimate
    kl: float


@dataclass(frozen=True)
class BoundSection:
    """Bound (5), and (5) + (7), at θ_m. ``vertices`` are the c_j of section 5 (linearised, without the gain)."""

    readings: tuple[ReadingRow, ...]
    trivial_risk: float
    distance: float
    blocks: tuple[str, ...]
    experts: Mapping[str, tuple[ExpertRow, ...]]
    log_price: float
    vertices: tuple[Estimate, ...]


def compute(workspace: Workspace, subject: Subject) -> BoundSection:
    """Evaluate the readings at θ_m."""
    displacement = workspace.displacement(subject)
    bounds, _ = workspace.at_merge(subject)
    side, vectors = workspace.experts, workspace.vectors
    distances = [norm(delta) for delta in vectors.deltas]
    return BoundSection(
        readings=tuple(map(reading_row, bounds)),
        trivial_risk=workspace.trivial_risk,
        distance=norm(displacement),
        blocks=tuple(workspace.blocks),
        experts={
            "assumed-linear": _experts(side.assumed, distances),
            "linearised": _experts(side.linear, distances),
        },
        log_price=side.linear.log_price,
        vertices=vertices(bounds[READINGS.index("linearised")]),
    )


def reading_row(bound: Bound) -> ReadingRow:
    """Return a bound as the report keeps it."""
    terms = tuple(
        TermRow(t.symbol, t.name, t.equation, t.estimate, t.per_task, t.note, bound.shares[t.symbol])
        for t in bound.terms
    )
    return ReadingRow(
        bound.name,
        bound.reading,
        bound.value,
        bound.stderr,
        bound.status,
        bound.vacuous,
        bound.delta,
        bound.assumptions,
        terms,
    )


def _experts(side: Anchors, distances: list[float]) -> tuple[ExpertRow, ...]:
    return tuple(
        ExpertRow(s.own_risk, s.n, distance, s.displacement_sq, s.kernel, s.gradient, s.sigma, s.eta, s.qsb, s.kl)
        for s, distance in zip(side.statistics, distances, strict=True)
    )
