"""One row per term of the theorems: what it is called, where it stands, how it is shown (docs/theory.md 3-7).

Bounds, figures, tables and studies read a term's symbol, name, equation and colour here and nowhere else; what is
computed for it is in the module of its theorem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bounds.types import Estimate, Term, weighted_sum


@dataclass(frozen=True, kw_only=True)
class TermKind:
    """A term of the bounds.

    Attributes:
        symbol: its formula, as in docs/theory.md.
        name: what it is called in tables, figures and sentences; no two kinds share one.
        equation: the number of the equation it stands in.
        explanation: one sentence for the reader of a report.
        colour: a name of the figures' palette or a hex value.
        hatch: its hatching in print without colour.
        linear: whether it is true of a network that is linear in theta only, so that it is ``assumed`` in the
            assumed-linear reading.
        depends_on_beta: whether it is linear in beta and has a value at every vertex; else it is the same at all.
    """

    symbol: str
    name: str
    equation: str
    explanation: str
    colour: str
    hatch: str = ""
    linear: bool = False
    depends_on_beta: bool = True

    def elsewhere(self, equation: str, symbol: str | None = None) -> TermKind:
        """Return the same kind as it stands in another equation."""
        return replace(self, equation=equation, symbol=symbol or self.symbol)

    def term(self, estimate: Estimate, per_task: Sequence[Estimate] = (), note: str = "") -> Term:
        """Return the term with its value and, where they are known, its values per task or expert."""
        return Term(
            symbol=self.symbol,
            name=self.name,
            equation=self.equation,
            estimate=estimate,
            per_task=tuple(per_task),
            note=note,
        )

    def average(self, values: Sequence[Estimate], weights: Sequence[float]) -> Term:
        """Return the term sum_j w_j v_j; the experts' samples are independent, so errors add in quadrature."""
        return self.term(weighted_sum(values, weights), values)


POSTERIORS_RISK = TermKind(
    symbol="Σβ_j A_j L̂_j(Q_j)",
    name="posteriors' own risk",
    equation="(4)",
    explanation="Training risk of every expert's posterior on its own task.",
    colour="blue",
)
OWN_RISK = TermKind(
    symbol="Σβ_j A_j L̂_j(m_j)",
    name="experts' own risk",
    equation="(5)",
    explanation="Training risk of every expert on its own task.",
    colour="blue",
)
MERGE_RISK = TermKind(
    symbol="Σβ_j A_j L̂_j(θ_m)",
    name="risk of the merge",
    equation="(6)",
    explanation="Training risk of the merged model on every task.",
    colour="blue",
)
GRADIENT_FLATNESS = TermKind(
    symbol="Σβ_j A_j ‖∇L̂_j(θ_m)‖²/(2μ)",
    name="gradient-norm flatness",
    equation="(6)",
    explanation="How steep the training risk is at the merged model, on the way to every expert.",
    colour="#4A7F93",
    hatch="\\\\",
    linear=True,
)
DISPERSION = TermKind(
    symbol="Σβ_j A_j (μ/2)‖m_j − θ_m‖²",
    name="dispersion",
    equation="(6)",
    explanation="How far the experts lie from the merged model.",
    colour="#8A62A6",
    hatch="++",
    linear=True,
)
KERNEL_DISPERSION = TermKind(
    symbol="Σβ_j A_j (γ/2)‖J(m_j − θ_m)‖²",
    name="kernel-weighted dispersion",
    equation="(6)",
    explanation="How far the experts lie from the merged model, measured by what the scores see of it.",
    colour="#bc5090",
    hatch="//",
    linear=True,
)
NOISE = TermKind(
    symbol="Σβ_j A_j (γ/2)Σσ²κ̂_j",
    name="kernel-weighted noise",
    equation="(5)",
    explanation="What the posterior's noise adds to the training risk, at most, through the kernel's trace.",
    colour="sky",
    hatch="///",
    linear=True,
)
COMPLEXITY = TermKind(
    symbol="Σβ_j A_j (KL_j + price_j)/(η_j n_j)",
    name="complexity",
    equation="(5)",
    explanation="What it costs that posteriors and grids were chosen after seeing the training data.",
    colour="orange",
)
FLATNESS = TermKind(
    symbol="Σβ_j B_j E E_Q⟨∇ℓ, Σ∇ℓ⟩",
    name="Poincaré flatness",
    equation="(5)",
    explanation="How strongly the loss varies under the posterior's noise: small where the experts are flat.",
    colour="yellow",
    hatch="...",
)
HETEROGENEITY = TermKind(
    symbol="H_Q(α,β)",
    name="heterogeneity",
    equation="(1)",
    explanation="What the mixture of experts costs because the tasks disagree.",
    colour="vermilion",
    hatch="\\\\\\",
)
GAP = TermKind(
    symbol="⟨∇L_α(θ_m), θ_m − θ_β⟩",
    name="consensus gap",
    equation="(5)",
    explanation="First-order change of the risk from the weighted mean of the experts to the merged model.",
    colour="purple",
    hatch="xxx",
    linear=True,
)
GAIN = TermKind(
    symbol="−Σα_i E KL(p_m‖p_θ)",
    name="Bregman gain",
    equation="(5)",
    explanation="What one model gains over the mixture because the loss is convex; negative.",
    colour="green",
    hatch="---",
    linear=True,
)
TRANSFER = TermKind(
    symbol="ε⁺_α(θ_m)",
    name="transfer error",
    equation="(7)",
    explanation="How much worse the network may be than its linearisation.",
    colour="#8c8c8c",
    hatch="|||",
    depends_on_beta=False,
)
TEACHERS_RISK = TermKind(
    symbol="Σα_t R_t(p_t)",
    name="teachers' risk",
    equation="(8)",
    explanation="Risk of every teacher on its own task.",
    colour="blue",
)
TEACHERS_ERROR = TermKind(
    symbol="Σα_t err(p_t)",
    name="teachers' error",
    equation="7",
    explanation="0-1 error of every teacher on its own task.",
    colour="blue",
)
DISTILLATION = TermKind(
    symbol="M·TV",
    name="distillation",
    equation="(8)",
    explanation="What imperfect imitation of the teachers may add.",
    colour="orange",
)
DISAGREEMENT = TermKind(
    symbol="Σα_t Pr[q ≠ p]",
    name="disagreement",
    equation="7",
    explanation="How often student and teacher name different classes.",
    colour="orange",
)

# Collected, not listed: a row that is written above cannot be forgotten here.
KINDS: tuple[TermKind, ...] = tuple(kind for kind in tuple(globals().values()) if isinstance(kind, TermKind))
"""Every term of (4) to (8), in the order of the rows above."""
KIND_OF: Mapping[str, TermKind] = {kind.name: kind for kind in KINDS}
"""Name of a term -> its row."""
