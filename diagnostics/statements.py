"""What every number rests on, in words: lines of the ledger that no section owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diagnostics.settings import ETA_GRID, GAMMA, SIGMA_GRID, Settings


@dataclass(frozen=True)
class Assumption:
    """One line of the ledger: what is assumed or used, its value here, and how that was obtained."""

    name: str
    value: str
    how: str


def common(settings: Settings, learned_heads: Sequence[str] = ()) -> tuple[Assumption, ...]:
    """Assumptions behind all numbers, the value used and how it was obtained.

    Args:
        settings: of the report.
        learned_heads: tasks whose head was trained on S_t.
    """
    heads = Assumption(
        "heads independent of every S_t",
        f"not so for {', '.join(learned_heads)}",
        "trained on S_t, they are no part of θ and cost nothing in (5), which assumes that they were given; held-out "
        "certificates do not need this",
    )
    return (
        Assumption("examples i.i.d. within a task", "train, validation and test", "assumed; splits are disjoint"),
        Assumption(
            f"θ_0, {'' if learned_heads else 'heads, '}blocks, grids independent of every S_t",
            "absolute grids",
            "by construction",
        ),
        *((heads,) if learned_heads else ()),
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
    )
