"""What every number rests on, in words: lines of the ledger that no section owns."""

from __future__ import annotations

from dataclasses import dataclass

from diagnostics.settings import ETA_GRID, GAMMA, SIGMA_GRID, Settings


@dataclass(frozen=True)
class Assumption:
    """One line of the ledger: what is assumed or used, its value here, and how that was obtained."""

    name: str
    value: str
    how: str


def common(settings: Settings) -> tuple[Assumption, ...]:
    """Assumptions behind all numbers, the value used and how it was obtained."""
    return (
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
    )
