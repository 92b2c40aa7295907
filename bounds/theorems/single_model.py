"""Theorem 2, the bound for one merged model, and its vertices (docs/theory.md sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from bounds.heterogeneity import CrossRisk
from bounds.pac_bayes import GRIDS, POINCARE, QSB
from bounds.pac_bayes.posterior import uncertified
from bounds.theorems.experts import (
    HELD_OUT,
    IID,
    AnchorStatistics,
    MergeAnchor,
    amplified,
    checked_weights,
    complexity_terms,
    expert_term,
    heterogeneity_term,
    prices,
)
from bounds.types import Bound, Estimate, Term, refuse, weighted_sum
from bounds.validation import check_estimate

Reading = Literal["assumed-linear", "linearised", "corrected"]
READINGS: tuple[Reading, ...] = ("assumed-linear", "linearised", "corrected")
Form = Literal["expert-anchored", "merge-anchored", "free anchors"]
FORMS: tuple[Form, ...] = ("expert-anchored", "merge-anchored", "free anchors")

GAP = "⟨∇L_α(θ_m), θ_m − θ_β⟩"
GAIN = "−Σα_i E KL(p_m‖p_θ)"
TRANSFER = "ε⁺_α(θ_m)"
GAP_TOLERANCE = 1e-3

LINEAR = "the network is linear in theta between theta_0, the experts and theta_m"
SMOOTH = "the loss is convex and gamma-smooth in the scores"

USES_LINEARITY = frozenset(
    {
        "gradient-norm flatness",
        "dispersion",
        "kernel-weighted dispersion",
        "kernel-weighted noise",
        "consensus gap",
        "Bregman gain",
    }
)


def theorem2(
    anchors: Sequence[AnchorStatistics],
    heterogeneity: Estimate | CrossRisk | Sequence[Tensor],
    alpha: Sequence[float] | Tensor,
    beta: Sequence[float] | Tensor,
    consensus_gap: Estimate,
    bregman_gain: Estimate | None = None,
    *,
    delta: float,
    log_price: float | Sequence[float] | None = None,
    gamma: float = 0.5,
    reading: Reading = "linearised",
    transfer_error: Estimate | None = None,
    trivial_risk: float = math.inf,
    form: Form = "expert-anchored",
    merge_anchors: Sequence[MergeAnchor] | None = None,
    gap_per_expert: Sequence[Estimate] = (),
    gain_per_expert: Sequence[Estimate] = (),
) -> Bound:
    """Bound the single merged model theta_m: (5), with (6) in the merge-anchored form.

    Terms, in order: experts' own risk (merge-anchored: risk of the merge, gradient-norm flatness, dispersion,
    kernel-weighted dispersion); kernel-weighted noise; complexity; Poincaré flatness; heterogeneity;
    consensus gap; Bregman gain (negative, if given); transfer error (``corrected`` only).

    Args:
        anchors: T experts with anchors m_j and sum_j beta_j m_j = theta_beta.
        heterogeneity: H_Q of the linearised posteriors, the cross-risk R_ij = L_i(Q_j), or losses [m_i, T].
        alpha: evaluation weights [T] on the simplex.
        beta: merging weights [T] on the simplex.
        consensus_gap: <grad L_alpha(theta_m), theta_m - theta_beta>; exactly 0 for free anchors.
        bregman_gain: sum_i alpha_i E_{D_i} E_{Q_beta} KL(p_m || p_theta) >= 0; cross-entropy only.
        delta: failure probability, for all theta_m, alpha and beta at once.
        log_price: ln(T G_j/delta) per expert or one for all (``union_price``); ln(T/delta) when None.
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy, 1/(2u^2) at temperature u).
        reading: "linearised" (from f^lin), "assumed-linear" (from f; linearity assumed), or
            "corrected" (linearised plus the transfer error: holds for f).
        transfer_error: epsilon^+_alpha(theta_m) of (7); with ``corrected`` and only then.
        trivial_risk: risk of the predictor that knows nothing.
        form: "expert-anchored" (m_j = theta_j), "merge-anchored", or "free anchors" (theta_beta = theta_m).
        merge_anchors: T of them, with form "merge-anchored" and only then.
        gap_per_expert: <grad L_alpha(theta_m), theta_m - m_j>, for ``vertices``.
        gain_per_expert: the gain under each Q_j, for ``vertices``.

    Raises:
        InputError: weights off the simplex, counts that differ, parts that do not belong to the reading or
            form, per-expert values that do not average to the total, or a price that does not pay for delta.

    Source: docs/theory.md (5), (6), (7). Status: worst of the inputs, never certified; in the assumed-linear
    reading the terms that use linearity are ``assumed``.
    """
    evaluation, merging = checked_weights(anchors, alpha, beta)
    _check_reading(reading, transfer_error)
    _check_form(form, merge_anchors, consensus_gap, len(anchors))
    terms = [
        *_risk_terms(anchors, merge_anchors, merging, gamma),
        *_noise_terms(anchors, merging, gamma, prices(log_price, len(anchors), delta)),
        heterogeneity_term(heterogeneity, evaluation, merging),
        _linear_term(GAP, "consensus gap", consensus_gap, gap_per_expert, merging, +1.0),
    ]
    if bregman_gain is not None:
        check_estimate(bregman_gain, "Bregman gain")
        terms.append(_linear_term(GAIN, "Bregman gain", bregman_gain, gain_per_expert, merging, -1.0))
    assumptions = (IID, GRIDS, QSB, POINCARE, HELD_OUT, SMOOTH)
    if transfer_error is not None:
        error = uncertified(check_estimate(transfer_error, "transfer error"))
        terms.append(Term(TRANSFER, "transfer error", "(7)", error, note="E max_k log(p_lin,k / p_k)"))
    if bregman_gain is not None or reading == "corrected":
        assumptions = (*assumptions, "cross-entropy")
    if reading == "assumed-linear":
        terms = [_assume(t) if t.name in USES_LINEARITY else t for t in terms]
        assumptions = (*assumptions, LINEAR)
    return Bound(f"Theorem 2, {form}", reading, tuple(terms), delta, assumptions, trivial_risk)


def _assume(term: Term) -> Term:
    def assume(e: Estimate) -> Estimate:
        return replace(e, status="assumed")

    return replace(term, estimate=assume(term.estimate), per_task=tuple(map(assume, term.per_task)))


def _check_reading(reading: Reading, transfer_error: Estimate | None) -> None:
    if reading not in READINGS:
        refuse("reading", expected=READINGS, got=reading, cure="choose one of these")
    if (reading == "corrected") != (transfer_error is not None):
        got = f"reading {reading!r}, transfer error {'absent' if transfer_error is None else 'given'}"
        refuse("transfer error", expected="with reading 'corrected' only", got=got, cure="give both or neither")


def _check_form(form: Form, merge: Sequence[MergeAnchor] | None, gap: Estimate, experts: int) -> None:
    if form not in FORMS:
        refuse("form", expected=FORMS, got=form, cure="choose one of these")
    if (form == "merge-anchored") != (merge is not None) or (merge is not None and len(merge) != experts):
        got = "none" if merge is None else len(merge)
        expected = f"{experts} with form 'merge-anchored', else none"
        refuse("merge anchors", expected=expected, got=got, cure="match the form")
    check_estimate(gap, "consensus gap", signed=True)
    if form == "free anchors" and gap.value != 0.0:
        cure = "choose anchors with sum_j beta_j m_j = theta_m"
        refuse("consensus gap", expected="exactly 0 with free anchors", got=gap.value, cure=cure)


def _risk_terms(
    anchors: Sequence[AnchorStatistics],
    merge_anchors: Sequence[MergeAnchor] | None,
    merging: Sequence[float],
    gamma: float,
) -> list[Term]:
    factors = [anchor.factors[0] for anchor in anchors]
    if merge_anchors is None:
        own = [amplified(a, anchor.own_risk) for a, anchor in zip(factors, anchors, strict=True)]
        return [expert_term("Σβ_j A_j L̂_j(m_j)", "experts' own risk", "(5)", own, merging)]
    parts = (
        ("Σβ_j A_j L̂_j(θ_m)", "risk of the merge", [m.risk for m in merge_anchors]),
        (
            "Σβ_j A_j ‖∇L̂_j(θ_m)‖²/(2μ)",
            "gradient-norm flatness",
            [m.gradient_flatness for m in merge_anchors],
        ),
        ("Σβ_j A_j (μ/2)‖m_j − θ_m‖²", "dispersion", [m.dispersion for m in merge_anchors]),
        (
            "Σβ_j A_j (γ/2)‖J(m_j − θ_m)‖²",
            "kernel-weighted dispersion",
            [m.kernel_dispersion.scaled(gamma / 2.0) for m in merge_anchors],
        ),
    )
    return [
        expert_term(s, name, "(6)", [amplified(a, v) for a, v in zip(factors, vs, strict=True)], merging)
        for s, name, vs in parts
    ]


def _noise_terms(
    anchors: Sequence[AnchorStatistics], merging: Sequence[float], gamma: float, price: Sequence[float]
) -> list[Term]:
    noise = [amplified(anchor.factors[0], anchor.noise(gamma)) for anchor in anchors]
    flat = [amplified(anchor.factors[1], anchor.flatness) for anchor in anchors]
    complexity = complexity_terms(anchors, price)
    return [
        expert_term("Σβ_j A_j (γ/2)Σσ²κ̂_j", "kernel-weighted noise", "(5)", noise, merging),
        expert_term("Σβ_j A_j (KL_j + price_j)/(η_j n_j)", "complexity", "(5)", complexity, merging),
        expert_term("Σβ_j B_j E E_Q⟨∇ℓ, Σ∇ℓ⟩", "Poincaré flatness", "(5)", flat, merging),
    ]


def _linear_term(
    symbol: str,
    name: str,
    total: Estimate,
    per_expert: Sequence[Estimate],
    merging: Sequence[float],
    sign: float,
) -> Term:
    """Return a term linear in beta; per-expert values, if given, must average to the total."""
    if per_expert:
        mean = weighted_sum(per_expert, merging).value
        scale = abs(total.value) + sum(b * abs(e.value) for e, b in zip(per_expert, merging, strict=True))
        if abs(mean - total.value) > GAP_TOLERANCE * scale + 1e-9:
            expected = f"beta-average {total.value:.6g}"
            cure = "compute both on the same data"
            refuse(f"{name} per expert", expected=expected, got=mean, cure=cure)
    values = tuple(uncertified(e).scaled(sign) for e in per_expert)
    return Term(symbol, name, "(5)", uncertified(total).scaled(sign), values)


def vertices(bound: Bound, *, gain: bool = False) -> tuple[Estimate, ...]:
    """Read c_1..c_T off a bound of theorem 1 or 2: its value at beta = e_j, for the same theta_m.

    For a fixed theta_m the right-hand side is linear in beta: sum_j beta_j c_j, so its best beta is a vertex.
    Choose the vertex on one half of the held-out data and report it on the other.

    Args:
        bound: from ``theorem1`` or ``theorem2``, with the cross-risk and the per-expert gap.
        gain: subtract the Bregman gain per expert too (off: as docs/theory.md section 5 reports c_j).

    Returns:
        One estimate per expert; standard errors add over terms (an upper limit).

    Raises:
        InputError: a term has no per-expert values.

    Source: docs/theory.md section 5. Status: worst of the terms.
    """
    used = [term for term in bound.terms if gain or term.symbol != GAIN]
    experts = max(len(term.per_task) for term in used)
    columns: list[tuple[Estimate, ...]] = []
    for term in used:
        if term.symbol != TRANSFER and len(term.per_task) != experts:
            cure = "pass the cross-risk, gap_per_expert and gain_per_expert"
            refuse(f"term {term.name!r}", expected=f"{experts} per-expert values", got="none", cure=cure)
        columns.append((term.estimate,) * experts if term.symbol == TRANSFER else term.per_task)
    return tuple(
        replace(weighted_sum(row, [1.0] * len(row)), stderr=sum(e.stderr for e in row))
        for row in zip(*columns, strict=True)
    )
