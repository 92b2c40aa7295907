"""Theorem 2, the bound for one merged model, and its vertices (docs/theory.md sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from bounds.pac_bayes import GRIDS, POINCARE, QSB
from bounds.pac_bayes.posterior import uncertified
from bounds.theorems.experts import HELD_OUT, IID, AnchorStatistics, Experts, MergeAnchor, amplified
from bounds.theorems.terms import (
    COMPLEXITY,
    DISPERSION,
    FLATNESS,
    GAIN,
    GAP,
    GRADIENT_FLATNESS,
    KERNEL_DISPERSION,
    KIND_OF,
    MERGE_RISK,
    NOISE,
    OWN_RISK,
    TRANSFER,
)
from bounds.theorems.weights import Linear, Weights, at, check_tasks
from bounds.types import Bound, Estimate, Term, refuse, weighted_sum
from bounds.validation import check_estimate

Reading = Literal["assumed-linear", "linearised", "corrected"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Form = Literal["expert-anchored", "merge-anchored", "free anchors"]

LINEAR = "the network is linear in theta between theta_0, the experts and theta_m"
SMOOTH = "the loss is convex and gamma-smooth in the scores"


@dataclass(frozen=True)
class Corrected:
    """The corrected reading: linearised, plus epsilon^+_alpha(theta_m) of (7), so that it holds for the network."""

    transfer_error: Estimate

    def __post_init__(self) -> None:
        check_estimate(self.transfer_error, TRANSFER.name)


ReadAs: TypeAlias = Literal["assumed-linear", "linearised"] | Corrected
"""What the statistics were measured on: the network, taken for linear; its linearisation; that, corrected by (7)."""


@dataclass(frozen=True)
class MergedModel:
    """What (5) needs to know about theta_m itself.

    ``gap`` is <grad L_alpha(theta_m), theta_m - theta_beta>, per expert with m_j in the place of theta_beta; None for
    free anchors, sum_j beta_j m_j = theta_m, where it is exactly 0. ``gain`` is sum_i alpha_i E_{D_i} E_{Q_j}
    KL(p_m || p_theta) >= 0, for cross-entropy only; None leaves it out. ``anchors``, one per expert, put the terms of
    (6) in the place of the experts' own risk; None keeps (5).
    """

    gap: Linear | None
    gain: Linear | None = None
    anchors: Sequence[MergeAnchor] | None = None

    @property
    def form(self) -> Form:
        """The form of the bound that these quantities make."""
        if self.anchors is not None:
            return "merge-anchored"
        return "free anchors" if self.gap is None else "expert-anchored"


def theorem2(
    experts: Experts[AnchorStatistics],
    merge: MergedModel,
    weights: Weights,
    *,
    delta: float,
    reading: ReadAs = "linearised",
    gamma: float = 0.5,
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound the single merged model theta_m: (5), with (6) in the merge-anchored form.

    Terms, in order: experts' own risk (merge-anchored: risk of the merge, gradient-norm flatness, dispersion,
    kernel-weighted dispersion); kernel-weighted noise; complexity; Poincaré flatness; heterogeneity;
    consensus gap; Bregman gain (negative, if given); transfer error (corrected reading only).

    Args:
        experts: T anchors m_j with sum_j beta_j m_j = theta_beta, their cross-risk, and what they were chosen from.
        merge: gap, gain and, for (6), what is known of the way from theta_m to the anchors.
        weights: alpha and beta [T].
        delta: failure probability, for all theta_m, alpha and beta at once.
        reading: "linearised" (from f^lin), "assumed-linear" (from f; linearity assumed), or
            ``Corrected(transfer_error)`` (linearised plus the transfer error: holds for f).
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy, 1/(2u^2) at temperature u).
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: parts of different numbers of tasks, a negative gain or transfer error, an unknown reading, or
            delta outside (0, 1).

    Source: docs/theory.md (5), (6), (7). Status: worst of the inputs, never certified; in the assumed-linear
    reading the terms that use linearity are ``assumed``.
    """
    name = _name(reading)
    check_tasks(len(weights), len(experts), "weights")
    noise = [amplified(s.factors[0], s.noise(gamma)) for s in experts.statistics]
    terms = [
        *_risk_terms(experts, merge.anchors, weights, gamma),
        NOISE.average(noise, weights.beta),
        COMPLEXITY.average(experts.complexity(delta), weights.beta),
        FLATNESS.average(experts.flatness(), weights.beta),
        experts.heterogeneity(weights),
        _gap_term(merge.gap, weights),
    ]
    assumptions = (IID, GRIDS, QSB, POINCARE, HELD_OUT, SMOOTH)
    if merge.gain is not None:
        terms.append(_gain_term(merge.gain, weights))
    if isinstance(reading, Corrected):
        terms.append(TRANSFER.term(uncertified(reading.transfer_error), note="E max_k log(p_lin,k / p_k)"))
    if merge.gain is not None or isinstance(reading, Corrected):
        assumptions = (*assumptions, "cross-entropy")
    if reading == "assumed-linear":
        terms = [_assume(term) if KIND_OF[term.name].linear else term for term in terms]
        assumptions = (*assumptions, LINEAR)
    return Bound(
        name=f"Theorem 2, {merge.form}",
        reading=name,
        terms=tuple(terms),
        delta=delta,
        assumptions=assumptions,
        trivial_risk=trivial_risk,
    )


def _name(reading: ReadAs) -> Reading:
    if isinstance(reading, Corrected):
        return "corrected"
    if reading not in ("assumed-linear", "linearised"):
        expected = "'assumed-linear', 'linearised' or Corrected(transfer_error)"
        refuse("reading", expected=expected, got=repr(reading), cure="choose one of these")
    return reading


def _assume(term: Term) -> Term:
    def assume(e: Estimate) -> Estimate:
        return replace(e, status="assumed")

    return replace(term, estimate=assume(term.estimate), per_task=tuple(map(assume, term.per_task)))


def _risk_terms(
    experts: Experts[AnchorStatistics], merge: Sequence[MergeAnchor] | None, weights: Weights, gamma: float
) -> list[Term]:
    factors = [s.factors[0] for s in experts.statistics]
    if merge is None:
        parts = ((OWN_RISK, [s.own_risk for s in experts.statistics]),)
    else:
        check_tasks(len(merge), len(experts), "merge anchors")
        parts = (
            (MERGE_RISK, [m.risk for m in merge]),
            (GRADIENT_FLATNESS, [m.gradient_flatness for m in merge]),
            (DISPERSION, [m.dispersion for m in merge]),
            (KERNEL_DISPERSION, [m.kernel_dispersion.scaled(gamma / 2.0) for m in merge]),
        )
    return [
        kind.average([amplified(a, v) for a, v in zip(factors, values, strict=True)], weights.beta)
        for kind, values in parts
    ]


def _gap_term(source: Linear | None, weights: Weights) -> Term:
    if source is None:
        return GAP.term(Estimate(0.0))
    total, parts = at(source, weights, GAP.name)
    check_estimate(total, GAP.name, signed=True)
    return GAP.term(uncertified(total), [uncertified(e) for e in parts])


def _gain_term(source: Linear, weights: Weights) -> Term:
    total, parts = at(source, weights, GAIN.name)
    check_estimate(total, GAIN.name)
    return GAIN.term(uncertified(total).scaled(-1.0), [uncertified(e).scaled(-1.0) for e in parts])


def vertices(bound: Bound, *, gain: bool = False) -> tuple[Estimate, ...]:
    """Read c_1..c_T off a bound of theorem 1 or 2: its value at beta = e_j, for the same theta_m.

    For a fixed theta_m the right-hand side is linear in beta: sum_j beta_j c_j, so its best beta is a vertex.
    Choose the vertex on one half of the held-out data and report it on the other.

    Args:
        bound: from ``theorem1`` or ``theorem2``, with a gap (and gain) that is known per expert.
        gain: subtract the Bregman gain per expert too (off: as docs/theory.md section 5 reports c_j).

    Returns:
        One estimate per expert; standard errors add over terms (an upper limit).

    Raises:
        InputError: a term has no per-expert values.

    Source: docs/theory.md section 5. Status: worst of the terms.
    """
    used = [term for term in bound.terms if gain or term.name != GAIN.name]
    experts = max(len(term.per_task) for term in used)
    columns: list[tuple[Estimate, ...]] = []
    for term in used:
        everywhere = not KIND_OF[term.name].depends_on_beta
        if not everywhere and len(term.per_task) != experts:
            cure = "pass the gap and the gain per expert"
            refuse(f"term {term.name!r}", expected=f"{experts} per-expert values", got="none", cure=cure)
        columns.append((term.estimate,) * experts if everywhere else term.per_task)
    return tuple(
        replace(weighted_sum(row, [1.0] * len(row)), stderr=sum(e.stderr for e in row))
        for row in zip(*columns, strict=True)
    )
