"""The ladder (8): what imitating the teachers leaves, per task and in total."""

from __future__ import annotations

from dataclasses import dataclass

from bounds.distillation import Rung, ladder
from bounds.types import Estimate
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace


@dataclass(frozen=True)
class RungRow:
    """One rung: a value per task and in total, in units of the 0-1 cost (KL: nats)."""

    name: str
    per_task: tuple[Estimate, ...]
    total: Estimate


@dataclass(frozen=True)
class DistillationSection:
    """Upper bounds on what the merge adds to its teachers' 0-1 risk, tightest first, then KL and disagreement."""

    cost_bound: float
    surrogate_temperature: float
    rungs: tuple[RungRow, ...]
    divergence: RungRow
    disagreement: RungRow
    surrogate: RungRow


def compute(workspace: Workspace, subject: Subject) -> DistillationSection:
    """Compare merge and experts on the whole test split; no labels enter."""
    result = ladder(
        [t["expert"] for t in workspace.teachers()],
        [m["test"] for m in workspace.merged(subject)],
        workspace.alpha,
        surrogate_temperature=subject.artifact.settings.get("temperature", 1.0),
    )
    return DistillationSection(
        result.cost_bound,
        result.surrogate_temperature,
        tuple(_row(r) for r in result.rungs),
        _row(result.divergence),
        _row(result.disagreement),
        _row(result.surrogate),
    )


def _row(rung: Rung) -> RungRow:
    return RungRow(rung.name, rung.per_task, rung.total)
