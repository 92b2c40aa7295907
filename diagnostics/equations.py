"""The equations that a report speaks of: formula, one sentence, and where docs/theory.md states and proves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

THEORY = "docs/theory.md"
"""What readers are told; :func:`theory_file` is where it is."""


@dataclass(frozen=True)
class Equation:
    """One equation, in the notation of ``diagnostics.figures.notation``: x_i and x^i are set as sub- and superscripts.

    ``sentence`` is how to read it; ``section`` the number of its section in docs/theory.md.
    """

    number: str
    formula: str
    sentence: str
    section: int


_ROWS = (
    Equation(
        "1",
        "H_Q = Σ_i Σ_j α_i β_j (R_ij − R_jj), R_ij = L_i(Q_j)",
        "Heterogeneity: what the experts' posteriors lose on each other's tasks, against their own.",
        1,
    ),
    Equation(
        "5",
        "L_α(θ_m) ≤ Σ_j β_j {A_j [L̂_j(m_j) + noise_j + (KL_j + price_j)/(η_j n_j)] + flatness_j} + H_Q + gap − gain",
        "Theorem 2: the linearised merge's risk is at most what the experts' own bounds pay, with what merging adds.",
        5,
    ),
    Equation(
        "5a",
        "right side of (5) = L^lin_α(θ_m) + Σ_j β_j s_j",
        "The total is the measured risk of the linearised merge plus the slack s_j of each expert's own bound, "
        "which does not depend on the merge.",
        5,
    ),
    Equation(
        "7",
        "L_α(θ) ≤ L^lin_α(θ) + ε⁺",
        "Transfer error: what leaving the linearised network costs at most; no labels needed.",
        6,
    ),
    Equation(
        "8",
        "R_α(merge) − R_α(teachers) ≤ E TV ≤ min{√(K/2), √(1 − e^−K)}, K = E KL(teacher ‖ merge)",
        "Theorem 3: a merge close to its teachers errs hardly more than they do.",
        7,
    ),
    Equation(
        "9",
        "e ≤ kl⁻¹(k/n | ln(1/δ)/n)",
        "The error of a fixed model from k errors among n fresh labelled examples.",
        8,
    ),
    Equation(
        "10",
        "e(Q) ≤ kl⁻¹(ê(Q) | (‖λ̂ − λ_prior‖²/(2s²) + ln(2√n G/δ))/n)",
        "The mean error of random coefficients around λ̂, even where λ̂ was learned on the same labels.",
        8,
    ),
    Equation(
        "11",
        "error of the merge ≤ error of the teachers + disagreement with them",
        "A merge that says what its teachers say errs where they do: its own labels are not needed.",
        8,
    ),
    Equation(
        "12",
        "Σ_t (n_t/n) e_t ≤ kl⁻¹(ê | ln(1/δ)/n)",
        "The tasks' examples counted together: one statement on the pooled error, with weights n_t/n.",
        8,
    ),
    Equation(
        "13",
        "p ≤ Beta⁻¹(1 − δ; k + 1, n − k), with care at k ≥ n − 1",
        "A count of k errors among n independent examples that need not be alike.",
        11,
    ),
    Equation(
        "14",
        "Pr[e > ē] ≤ δ, ē where Π_t Π_i (1 + ν a_t (ē + o_t − X_ti)) = 1/δ",
        "An upper limit on a weighted mean over tasks by one e-value: no task pays for another.",
        12,
    ),
    Equation(
        "15",
        "(14) for X − l·g, with the mean of g from unlabelled inputs",
        "Unlabelled inputs narrow the limit as far as the guess g foresees the error X.",
        12,
    ),
    Equation(
        "16",
        "X_i = 1[θ_i errs on z_i], θ_i ∼ Q for each example its own",
        "One draw per example makes independent errors: (13) and (14) hold for the randomised merge, with no KL.",
        13,
    ),
    Equation(
        "17",
        "right side of (5) = L^lin_α(θ_m) + Σ_j β_j s_j(c), m_j = θ_0 + c τ_j",
        "The total is a choice of anchors m_j: what s_j(c) says is how much of an expert's training evidence survives.",
        14,
    ),
    Equation(
        "18",
        "L_α(θ_m) = own risk + heterogeneity + effect of merging the weights",
        "An identity of the real network: where the risk of the merge comes from.",
        15,
    ),
    Equation(
        "19",
        "q = (1 − ε) p + ε/C",
        "The floor ε/C under every probability bounds the cross-entropy by ln(C/ε): it can be certified, in nats.",
        16,
    ),
    Equation(
        "22",
        "X_i = mean loss of the counted tokens of example i, each in [0, M]",
        "An example is one independent number, the mean over its tokens: (14) holds for it, no count of tokens does.",
        19,
    ),
)
EQUATIONS: Mapping[str, Equation] = {row.number: row for row in _ROWS}
"""Number -> equation."""


def theory_file() -> Path | None:
    """Return docs/theory.md of the checkout that this package lies in; None where it was installed without it."""
    path = Path(__file__).resolve().parents[1] / THEORY
    return path if path.is_file() else None


def anchors(theory: str) -> dict[int, str]:
    """Return the number of each section of docs/theory.md -> its anchor, as viewers of Markdown make it."""
    headings = re.findall(r"^## ((\d+)\. .*)$", theory, flags=re.MULTILINE)
    return {int(n): re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title, n in headings}
