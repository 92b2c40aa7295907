"""A bound report as data: its sections, how they are computed one by one, and what is said about all of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

import torch

from bounds.types import InputError, meant, refuse
from diagnostics import statements
from diagnostics.sections import comparison
from diagnostics.sections.base import View
from diagnostics.sections.comparison import Comparison
from diagnostics.sections.table import SECTIONS, serving
from diagnostics.settings import Settings
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.work.identity import code_of
from diagnostics.workspace import Scored, Workspace

SCHEMA = "mergebound.report/8"
Merge = TypeVar("Merge")


def with_sections(kind: type[Merge]) -> type[Merge]:
    """Add one field per section to a data class: its numbers, or None where it was not asked for or not reached."""
    added = [(name, section.kind | None, field(default=None)) for name, section in SECTIONS.items()]
    names = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return make_dataclass(kind.__name__, added, bases=(kind,), namespace=names, frozen=True, kw_only=True)


@with_sections
@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What the report says about one merge. A section that was not asked for or not reached is null."""

    label: str
    file: str
    method: str
    method_settings: Mapping[str, Any]
    seed: int | None
    made_in_seconds: float
    versions: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        """Name the sections where somebody asks for one that does not exist."""
        raise AttributeError(f"a report has no section {name!r}; its sections are {', '.join(SECTIONS)}")


@dataclass(frozen=True)
class TaskSizes:
    """A task's classes, number of examples in each split, and whether its frozen head was trained on S_t."""

    name: str
    classes: int
    sizes: Mapping[str, int]
    learned_head: bool


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """A bound report. Lists over experts and tasks follow ``tasks``; risks are cross-entropies in nats.

    ``scored`` says what of the tasks has one row of scores, an example or every position of one.
    """

    schema: str
    suite: str
    scored: Scored
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
    clock, found, scored = _Clock(budget_seconds, workspace), {}, workspace.scored
    served, clock.missing = _served(chosen, scored)
    for name in sorted(served, key=lambda name: SECTIONS[name].late):
        section = SECTIONS[name]
        for subject in workspace.subjects:
            found[name, subject.label] = clock.run(
                f"{subject.label}: {name}",
                partial(section.compute, workspace, subject),
                section.kind,
                (subject.label, subject.key),
                section.compute,
                name,
            )
    clock.check(found.values())
    settings, merges = workspace.plain_settings, tuple(_merge_report(subject, found) for subject in workspace.subjects)
    compared = _compare(workspace, sections, clock)
    sizes = clock.run("splits", lambda: _sizes(workspace), Splits, (), _sizes)
    parts = {name: parts_of(name, workspace.names, settings, merges) for name in SECTIONS}
    return Report(
        schema=SCHEMA,
        suite=workspace.subjects[0].artifact.suite,
        scored=scored,
        tasks=tuple(workspace.names),
        alpha=tuple(workspace.alpha),
        beta=tuple(workspace.beta),
        settings=settings,
        verdict=verdict(parts, merges),
        merges=merges,
        comparison=compared,
        assumptions=(
            *statements.common(
                settings, [task.name for task in sizes.tasks if task.learned_head] if sizes else (), scored
            ),
            *(line for name, shown in parts.items() if shown for line in SECTIONS[name].assumptions(shown)),
        ),
        provenance=Provenance(
            sources=dict(workspace.subjects[0].artifact.sources),
            tasks=() if sizes is None else sizes.tasks,
            versions=_versions(),
            machine=f"{platform.machine()}, {workspace.device}, {workspace.workers} processes",
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            seconds=clock.seconds,
            missing={**clock.missing, **_not_stated(parts)},
        ),
    )


def _served(chosen: Sequence[str], scored: Scored) -> tuple[list[str], dict[str, str]]:
    """Return the chosen sections that serve a kind of task, and why others that would say something do not.

    Raises:
        InputError: none of those that were chosen serves it.
    """
    why = {name: SECTIONS[name].unserved(scored) for name in chosen}
    served = [name for name, reason in why.items() if reason is None]
    if not served:
        got = f"{' and '.join(chosen)}, for tasks with one row of scores for every {scored}"
        refuse("sections", expected=" or ".join(serving(scored)), got=got, cure="choose among them")
    return served, {name: reason for name, reason in why.items() if reason}


def _compare(workspace: Workspace, sections: Sequence[str], clock: _Clock) -> Comparison | None:
    if len(workspace.subjects) < 2:
        return None
    if sections:
        clock.missing["comparison"] = "it is made for all sections only"
        return None
    if workspace.scored not in comparison.SCORED:
        clock.missing["comparison"] = comparison.RESTS_ON
        return None
    subjects = [(s.label, s.key) for s in workspace.subjects]
    return clock.run("comparison", lambda: comparison.compute(workspace), Comparison, subjects, comparison.compute)


def parts_of(
    name: str, tasks: Sequence[str], settings: Settings, merges: Sequence[MergeReport]
) -> list[tuple[View, Any]]:
    """Return a section of every merge that has it, with what else may be looked at when it is shown."""
    shown = [merge for merge in merges if getattr(merge, name) is not None]
    return [(view_of(tasks, settings, merge), getattr(merge, name)) for merge in shown]


def view_of(tasks: Sequence[str], settings: Settings, merge: MergeReport) -> View:
    """Return what the sections of a merge may look at besides their own numbers."""
    parts = {section.kind: getattr(merge, name) for name, section in SECTIONS.items()}
    return View(merge.label, merge.file, tasks, settings, parts)


def verdict(parts: Mapping[str, Sequence[tuple[View, Any]]], merges: Sequence[MergeReport]) -> tuple[str, ...]:
    """Return the sections' sentences, merge by merge: how good it is, what the bound says and why, where it lies."""
    sentences = []
    for merge in merges:
        name = f"{merge.label}: " if len(merges) > 1 else ""
        own = [(SECTIONS[n], view, part) for n, shown in parts.items() for view, part in shown]
        said = [section.sentence(view, part) for section, view, part in own if view.label == merge.label]
        sentences += [name + sentence for sentence in said if sentence]
    return tuple(sentences)


def _not_stated(parts: Mapping[str, Sequence[tuple[View, Any]]]) -> dict[str, str]:
    """Name what sections could not say, with the reason."""
    return {
        f"{view.label}: {name}: {what}": reason
        for name, shown in parts.items()
        for view, part in shown
        for what, reason in SECTIONS[name].missing(part).items()
    }


@dataclass(frozen=True)
class Splits:
    """The tasks' sizes, kept like a section so that a cached report needs no suite."""

    tasks: tuple[TaskSizes, ...]


def _sizes(workspace: Workspace) -> Splits:
    return Splits(
        tuple(
            TaskSizes(name, t["classes"], t["sizes"], t["learned_head"])
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
            refuse(
                "section",
                expected=" or ".join(SECTIONS),
                got=repr(name),
                cure=meant(name, SECTIONS, "choose among them"),
            )
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


class _Clock:
    """Times the sections, stops beginning them when the budget is spent, and goes on where one fails."""

    def __init__(self, budget: float | None, workspace: Workspace) -> None:
        self.seconds: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self.failed: list[Exception] = []
        self._workspace = workspace
        self._budget, self._begun, self._keeper = budget, time.perf_counter(), workspace.keeper

    def run(
        self, label: str, make: Callable[[], Any], kind: type, of: Any, code: Callable[..., Any], name: str = ""
    ) -> Any:
        name, started, keeper = name or label, time.perf_counter(), self._keeper
        cached = keeper.has(name, of, code)
        spent = keeper.cache.processes.broadcast(started - self._begun)
        if not cached and self._budget is not None and spent >= self._budget:
            self.missing[label] = f"the budget of {self._budget:g} s was spent; run again to go on"
            return None
        try:
            value = keeper.data(kind, name, of, code, make)
        except Exception as error:  # of whatever kind: it must not cost the other sections
            _ = self._workspace.suite  # a suite that cannot be had, or is another one, ends the report
            self.failed.append(error)
            self.missing[label] = _reason(error)
            return None
        if not cached:
            self.seconds[label] = time.perf_counter() - started
        return value

    def check(self, found: Iterable[Any]) -> None:
        """Raise the first failure where nothing at all could be made."""
        if self.failed and all(value is None for value in found):
            raise self.failed[0]


def _reason(error: Exception) -> str:
    """Return why a section could not be made, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _merge_report(subject: Subject, found: Mapping[tuple[str, str], Any]) -> MergeReport:
    artifact = subject.artifact
    return MergeReport(
        label=subject.label,
        file=subject.file,
        method=artifact.label,
        method_settings=artifact.all_settings,
        seed=artifact.seed,
        made_in_seconds=artifact.seconds,
        versions=dict(artifact.versions),
        **{name: found.get((name, subject.label)) for name in SECTIONS},
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "sections": code_of(build)[:12]}


def settings_table(settings: Settings) -> dict[str, Any]:
    """Return the settings as name -> value."""
    return asdict(settings)
