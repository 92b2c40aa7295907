"""What follows from the numbers, in words: the verdict's three sentences and the ledger of assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bounds.theorems.single_model import READINGS
from diagnostics.settings import COEFFICIENT_SCALES, ETA_GRID, GAMMA, OWN_SCALE, SIGMA_GRID, UNIFORM_PRIORS, Settings
from merging.commands.evaluation import MODELS, mean

if TYPE_CHECKING:
    from diagnostics.report import MergeReport


@dataclass(frozen=True)
class Assumption:
    """One line of the ledger: what is assumed or used, its value here, and how that was obtained."""

    name: str
    value: str
    how: str


def verdict(merges: Sequence[MergeReport]) -> tuple[str, ...]:
    """Three sentences per merge, from the sections that are there: how good, what the bound says and why, where."""
    sentences = []
    for merge in merges:
        name = f"{merge.label}: " if len(merges) > 1 else ""
        sentences += [name + s for s in (_how_good(merge), _what_theory_says(merge), _where(merge)) if s]
    return tuple(sentences)


def _how_good(merge: MergeReport) -> str:
    if merge.accuracy is None:
        return ""
    rows = merge.accuracy.tasks
    at = {m: 100 * mean(row.accuracy[m] for row in rows) for m in MODELS}
    text = (
        f"The merge is right on {at['merged']:.1f} % of the test examples (mean over {len(rows)} tasks; the pretrained "
        f"model on {at['pretrained']:.1f} %, the experts on {at['expert']:.1f} %)"
    )
    rows_ = merge.certificates.rows if merge.certificates else ()
    if rows_:  # the first, not the smallest: to choose among statements would cost δ
        first = rows_[0]
        text += (
            f"; certified: at most {100 * first.value:.1f} % errors by {first.equation} with n = {first.n}, "
            f"δ = {first.delta:g} (test: {100 * first.test_error:.1f} %)"
        )
    return text + "."


def _what_theory_says(merge: MergeReport) -> str:
    if merge.bound is None:
        return ""
    corrected = merge.bound.readings[READINGS.index("corrected")]
    largest = max(corrected.terms, key=lambda term: term.estimate.value)
    positive = sum(max(t.estimate.value, 0.0) for t in corrected.terms)
    state = "vacuous" if corrected.vacuous else "not vacuous"
    relation = "at or above" if corrected.vacuous else "below"
    measured = "" if merge.accuracy is None else f", the measured risk is {merge.accuracy.risk.value:.2f}"
    return (
        f"The bound that holds for the network (corrected) is {corrected.value:.2f} nats and {state}: it lies "
        f"{relation} the {merge.bound.trivial_risk:.2f} nats of knowing nothing{measured}; "
        f"{largest.name} dominates with {largest.estimate.value:.2f} nats, "
        f"{100 * largest.estimate.value / positive:.0f} % of the positive terms."
    )


def _where(merge: MergeReport) -> str:
    if merge.sweep is None:
        return ""
    path = merge.sweep.paths[0]
    at = f"At distance {path.norm:.2f} from θ_0 the merge lies "
    if path.ntk_radius is None:
        reached = path.points[-1].distance
        return at + f"inside the NTK radius: the residual stays below {path.tolerance:g} up to distance {reached:.2f}."
    side = "inside" if path.norm <= path.ntk_radius else "outside"
    one = min(path.points, key=lambda p: abs(p.s - 1))
    return at + (
        f"{side} the NTK radius {path.ntk_radius:.2f} (residual {path.tolerance:g}): the linearisation misses "
        f"{100 * one.residual:.0f} % of the change of the scores at s = {one.s:g}."
    )


def ledger(merges: Sequence[MergeReport], settings: Settings) -> tuple[Assumption, ...]:
    """Every assumption behind the numbers, the value used and how it was obtained."""
    lines = [
        Assumption("examples i.i.d. within a task", "train, validation and test", "assumed; splits are disjoint"),
        Assumption("θ_0, heads, blocks, grids independent of every S_t", "absolute grids", "by construction"),
        Assumption(
            "loss convex and γ-smooth in the scores", f"γ = {GAMMA:g}", "exact for cross-entropy, temperature 1"
        ),
        Assumption("grid of η", f"{len(ETA_GRID)} values, {ETA_GRID[0]:g} to {ETA_GRID[-1]:g}", "fixed in the code"),
        Assumption(
            "grid of σ", f"{len(SIGMA_GRID)} values, {SIGMA_GRID[0]:g} to {SIGMA_GRID[-1]:.2g}", "fixed in the code"
        ),
        Assumption(
            "failure probability", f"δ = {settings.delta:g}", "chosen; a statement each, not shared by sections"
        ),
    ]
    with_bound = next((m for m in merges if m.bound), None)
    if with_bound and with_bound.bound:
        lines += _bound_lines(with_bound, settings)
    for merge in merges:
        if merge.certificates:
            used = merge.certificates
            lines.append(
                Assumption(
                    f"certificates of {merge.label} rest on unused labels",
                    f"n = {used.n} validation labels, δ/{used.models_looked_at or '?'}",
                    used.use,
                )
            )
    if any(m.certificates and m.certificates.gibbs for m in merges):
        priors = (
            f"λ_prior in {{{', '.join(UNIFORM_PRIORS)}}} with s in {COEFFICIENT_SCALES}; "
            f"λ̂ with s = {OWN_SCALE:g} where the split is unused"
        )
        lines.append(Assumption("lists of priors in (10)", priors, "fixed in the code; each pays its ln G out of δ/2"))
    return tuple(lines)


def _bound_lines(merge: MergeReport, settings: Settings) -> list[Assumption]:
    assert merge.bound
    experts = merge.bound.experts
    lines = []
    for reading, rows in experts.items():
        constants = [e.qsb.value for e in rows]
        lines.append(
            Assumption(
                f"QSB: E_z(E_Q ℓ)² <= C·E_z E_Q ℓ ({reading})",
                f"C = {min(constants):.2f} to {max(constants):.2f}, ηC < 2",
                f"estimated as the ratio itself on {rows[0].qsb.n} held-out examples of each task",
            )
        )
    lines += [
        Assumption(
            "price of the grids", f"ln(T G/δ) = {merge.bound.log_price:.1f} nats", "exact; one σ per block, 0 included"
        ),
        Assumption(
            "Poincaré term, H_Q, gap, gain, ε⁺",
            f"{settings.held_out} held-out examples per task",
            "estimated on test examples unused in training and choices; shown with standard errors",
        ),
        Assumption(
            "network linear in θ (assumed-linear reading only)",
            "f in place of f^lin",
            "assumed; the corrected reading pays ε⁺ instead",
        ),
    ]
    return lines
