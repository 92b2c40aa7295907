"""What every number rests on, in words: lines of the ledger that no section owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagnostics.settings import ETA_GRID, GAMMA, SIGMA_GRID, Settings
from diagnostics.workspace import Scored


@dataclass(frozen=True)
class Assumption:
    """One line of the ledger: what is assumed or used, its value here, and how that was obtained."""

    name: str
    value: str
    how: str


_EXAMPLES = Assumption("examples i.i.d. within a task", "train, validation and test", "assumed; splits are disjoint")
_DOCUMENTS = Assumption(
    "examples i.i.d. within a domain, tokens of one example not",
    "train, validation and test",
    "assumed: no document lies in two examples; no example stands in two splits, which is checked",
)
_INDEPENDENT: Mapping[Scored, Assumption] = {"example": _EXAMPLES, "position": _DOCUMENTS}
"""What is independent of what."""


def common(settings: Settings, learned_heads: Sequence[str] = (), scored: Scored = "example") -> tuple[Assumption, ...]:
    """Assumptions behind all numbers, the value used and how it was obtained.

    Args:
        settings: of the report.
        learned_heads: tasks whose head was trained on S_t.
        scored: what of the tasks has one row of scores.
    """
    heads = Assumption(
        "heads independent of every S_t",
        f"not so for {', '.join(learned_heads)}",
        "trained on S_t, they are no part of θ and cost nothing in (5), which assumes that they were given; held-out "
        "certificates do not need this",
    )
    independent = f"{'' if learned_heads else 'heads, '}blocks, grids independent of every S_t"
    chosen = Assumption(
        "failure probability", f"δ = {settings.delta:g}", "chosen; a statement each, not shared by sections"
    )
    first = (
        _INDEPENDENT[scored],
        Assumption(f"θ_0, {independent}", "absolute grids", "by construction"),
        *((heads,) if learned_heads else ()),
    )
    return (*first, *(_BOUND if scored == "example" else ()), chosen)


_BOUND = (
    Assumption("loss convex and γ-smooth in the scores", f"γ = {GAMMA:g}", "exact for cross-entropy, temperature 1"),
    Assumption("grid of η", f"{len(ETA_GRID)} values, {ETA_GRID[0]:g} to {ETA_GRID[-1]:g}", "fixed in the code"),
    Assumption(
        "grid of σ", f"{len(SIGMA_GRID)} values, {SIGMA_GRID[0]:g} to {SIGMA_GRID[-1]:.2g}", "fixed in the code"
    ),
)
"""What (5) rests on, besides."""
