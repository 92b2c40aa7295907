"""The cross-risk R_ij = L_i(Q_j) and H_Q of (1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bounds.heterogeneity import heterogeneity
from bounds.types import Estimate
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace


@dataclass(frozen=True)
class CrossRiskTable:
    """R_ij in nats: row i the task, column j the expert's posterior; standard errors; examples m_i; H_Q(α, β)."""

    risk: tuple[tuple[float, ...], ...]
    stderr: tuple[tuple[float, ...], ...]
    examples: tuple[int, ...]
    heterogeneity: Estimate


@dataclass(frozen=True)
class HeterogeneitySection:
    """One table per reading: ``linearised`` posteriors in f^lin, ``assumed-linear`` the same sampled in the network."""

    readings: Mapping[str, CrossRiskTable]


def compute(workspace: Workspace, subject: Subject) -> HeterogeneitySection:
    """Collect the tables; they do not depend on the merge."""
    side = workspace.experts
    tables = {}
    for reading, anchors in (("linearised", side.linear), ("assumed-linear", side.assumed)):
        cross = anchors.cross
        tables[reading] = CrossRiskTable(
            tuple(map(tuple, cross.risk.tolist())),
            tuple(map(tuple, cross.stderr.tolist())),
            cross.sizes,
            heterogeneity(cross, workspace.alpha, workspace.beta),
        )
    return HeterogeneitySection(tables)
