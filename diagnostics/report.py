"""A bound report as data: its sections, how they are computed one by one, and what is said about all of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from bounds.types import refuse
from diagnostics import statements
from diagnostics.sections import (
    accuracy,
    bound,
    certificates,
    comparison,
    distillation,
    entk,
    flatness,
    heterogeneity,
    sweep,
)
from diagnostics.sections.accuracy import Accuracy
from diagnostics.sections.bound import BoundSection
from diagnostics.sections.certificates import CertificateSection
from diagnostics.sections.comparison import Comparison
from diagnostics.sections.distillation import DistillationSection
from diagnostics.sections.entk import KernelSection
from diagnostics.sections.flatness import FlatnessSection
from diagnostics.sections.heterogeneity import HeterogeneitySection
from diagnostics.sections.sweep import SweepSection
from diagnostics.settings import Settings
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.work.cache import VERSION, digest
from diagnostics.workspace import Workspace

SCHEMA = "mergebound.report/3"


@dataclass(frozen=True)
class SectionRow:
    """A row of the table of sections: its data class, how to compute it, what it rests on besides the suite's files."""

    kind: type
    compute: Callable[[Workspace, Subject], Any]
    settings: tuple[str, ...]
    title: str
    looks_at_all: bool = False


_BOUND = ("held_out", "kernel", "train", "draws", "weight_draws", "delta", "seed")
_SWEEP = (*_BOUND, "points", "control_points", "control_experts", "tolerance")
SECTIONS: Mapping[str, SectionRow] = {
    "accuracy": SectionRow(Accuracy, accuracy.compute, (), "Accuracy and risk"),
    "bound": SectionRow(BoundSection, bound.compute, _BOUND, "Bound"),
    "heterogeneity": SectionRow(HeterogeneitySection, heterogeneity.compute, _BOUND, "Cross-risk and heterogeneity"),
    "distillation": SectionRow(DistillationSection, distillation.compute, (), "Distillation ladder"),
    "certificates": SectionRow(
        CertificateSection, certificates.compute, ("delta", "gibbs_draws", "seed"), "Certificates", looks_at_all=True
    ),
    "sweep": SectionRow(SweepSection, sweep.compute, _SWEEP, "Distance"),
    "flatness": SectionRow(FlatnessSection, flatness.compute, ("held_out", "hessian", "rho", "seed"), "Flatness"),
    "entk": SectionRow(KernelSection, entk.compute, (*_BOUND, "gram"), "Neural tangent kernel"),
}
"""In the order in which they are computed: what a short budget should buy first comes first."""


@dataclass(frozen=True)
class MergeReport:
    """What the report says about one merge. A section that was not asked for or not reached is null."""

    label: str
    file: str
    method: str
    method_settings: Mapping[str, Any]
    seed: int | None
    made_in_seconds: float
    versions: Mapping[str, str]
    accuracy: Accuracy | None
    bound: BoundSection | None
    heterogeneity: HeterogeneitySection | None
    flatness: FlatnessSection | None
    entk: KernelSection | None
    distillation: DistillationSection | None
    certificates: CertificateSection | None
    sweep: SweepSection | None


@dataclass(frozen=True)
class TaskSizes:
    """A task's classes and number of examples in each split."""

    name: str
    classes: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Provenance:
    """Sources (file -> sha256), split sizes, versions, when and on what the report was made, seconds per section.

    ``seconds`` counts the sections computed by this run; what came from the cache is absent. ``missing`` says why a
    section is not there.
    """

    sources: Mapping[str, str]
    tasks: tuple[TaskSizes, ...]
    versions: Mapping[str, str]
    machine: str
    made: str
    seconds: Mapping[str, float]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """A bound report. Lists over experts and tasks follow ``tasks``; risks are cross-entropies in nats."""

    schema: str
    suite: str
    tasks: tuple[str, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    settings: Settings
    verdict: tuple[str, ...]
    merges: tuple[MergeReport, ...]
    comparison: Comparison | None
    assumptions: tuple[Assumption, ...]
    provenance: Provenance


def build(workspace: Workspace, sections: Sequence[str] = (), budget_seconds: float | None = None) -> Report:
    """Compute the sections, or read them from the workspace's cache, and say what follows from them.

    Args:
        workspace: suite, artifacts, settings, cache.
        sections: names of SECTIONS (default: all).
        budget_seconds: no section is begun after so many seconds; those in the cache are always shown.

    Raises:
        InputError: unknown section, artifacts of different suites, an artifact that does not belong to the suite.
    """
    chosen = check_sections(sections)
    check_subjects(workspace.subjects)
    clock = _Clock(budget_seconds)
    found: dict[tuple[str, str], Any] = {}
    for name in chosen:
        for subject in workspace.subjects:
            found[name, subject.label] = _section(workspace, subject, name, clock)
    compared = None
    if len(workspace.subjects) > 1 and not sections:
        compared = clock.run(
            "comparison",
            lambda: comparison.compute(workspace),
            Comparison,
            digest(workspace.key(*_BOUND, "resamples"), workspace.alpha, [s.key for s in workspace.subjects]),
            workspace,
        )
    merges = tuple(_merge_report(subject, found) for subject in workspace.subjects)
    sizes = clock.run("splits", lambda: _sizes(workspace), Splits, workspace.key(), workspace)
    return Report(
        SCHEMA,
        workspace.subjects[0].artifact.suite,
        tuple(workspace.names),
        tuple(workspace.alpha),
        tuple(workspace.beta),
        workspace.settings,
        statements.verdict(merges),
        merges,
        compared,
        statements.ledger(merges, workspace.settings),
        Provenance(
            dict(workspace.subjects[0].artifact.sources),
            () if sizes is None else sizes.tasks,
            _versions(),
            f"{platform.machine()}, {workspace.device}, {workspace.workers} processes",
            datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            clock.seconds,
            clock.missing,
        ),
    )


@dataclass(frozen=True)
class Splits:
    """The tasks' sizes, kept like a section so that a cached report needs no suite."""

    tasks: tuple[TaskSizes, ...]


def _sizes(workspace: Workspace) -> Splits:
    return Splits(
        tuple(
            TaskSizes(name, t["classes"], t["sizes"])
            for name, t in zip(workspace.names, workspace.facts(), strict=True)
        )
    )


def check_sections(sections: Sequence[str]) -> list[str]:
    """Return the chosen sections in the table's order (all for none).

    Raises:
        InputError: a name that is not in SECTIONS.
    """
    for name in sections:
        if name not in SECTIONS:
            refuse("section", expected=" or ".join(SECTIONS), got=repr(name), cure="choose among them")
    return [name for name in SECTIONS if not sections or name in sections]


def check_subjects(subjects: Sequence[Subject]) -> None:
    """Check that artifacts can stand side by side.

    Raises:
        InputError: none, no suite named, or artifacts of different suites or files.
    """
    if not subjects:
        refuse("artifacts", expected="at least one", got="none", cure="pass --merged out.pt")
    first = subjects[0]
    for subject in subjects:
        if subject.artifact.suite != first.artifact.suite or subject.artifact.sources != first.artifact.sources:
            refuse(
                f"artifact {subject.file}",
                expected=f"the suite and sources of {first.file} ({first.artifact.suite!r})",
                got=f"{subject.artifact.suite!r}",
                cure="compare merges of the same experts",
            )


def _section(workspace: Workspace, subject: Subject, name: str, clock: _Clock) -> Any:
    row = SECTIONS[name]
    count = len(workspace.subjects) if row.looks_at_all else 1
    key = digest(workspace.key(*row.settings), workspace.alpha, subject.key, count)
    return clock.run(
        f"{subject.label}: {name}", lambda: row.compute(workspace, subject), row.kind, key, workspace, name
    )


class _Clock:
    """Times the sections and stops beginning them when the budget is spent."""

    def __init__(self, budget: float | None) -> None:
        self.seconds: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self._budget, self._begun = budget, time.perf_counter()

    def run(
        self, label: str, make: Callable[[], Any], kind: type, key: str, workspace: Workspace, name: str | None = None
    ) -> Any:
        name, started = name or label, time.perf_counter()
        cached = workspace.cache.has(name, key)
        spent = workspace.cache.processes.broadcast(started - self._begun)
        if not cached and self._budget is not None and spent >= self._budget:
            self.missing[label] = f"the budget of {self._budget:g} s was spent; run again to go on"
            return None
        value = workspace.cache.data(kind, name, key, make)
        if not cached:
            self.seconds[label] = time.perf_counter() - started
        return value


def _merge_report(subject: Subject, found: Mapping[tuple[str, str], Any]) -> MergeReport:
    artifact = subject.artifact
    return MergeReport(
        label=subject.label,
        file=subject.file,
        method=artifact.method,
        method_settings=dict(artifact.settings),
        seed=artifact.seed,
        made_in_seconds=artifact.seconds,
        versions=dict(artifact.versions),
        **{name: found.get((name, subject.label)) for name in SECTIONS},
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "sections": VERSION}


def settings_table(settings: Settings) -> dict[str, Any]:
    """Return the settings as name -> value."""
    return asdict(settings)
