"""``python -m diagnostics.bound_report --merged out.pt``: what theory says about a merge, and how far it is off."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from bounds.types import meant, refuse
from diagnostics import report_tables
from diagnostics.figures.figure_files import read_manifest
from diagnostics.folder import FILES, as_json, read_report, write_report
from diagnostics.report import build, check_sections, check_subjects
from diagnostics.sections.table import SECTIONS
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.text import print_report
from diagnostics.work.cache import Cache, write
from diagnostics.work.workers import available
from diagnostics.workspace import Workspace
from merging import suites
from merging.artifact import load
from merging.commands import console, options, plain, run, stage, track, write_json
from merging.execution import check_device
from merging.files import check_folder, check_outputs, encoded, place
from merging.processes import Processes, local_device, processes
from merging.rows import silent
from merging.suites import Suite


@dataclass(frozen=True, kw_only=True)
class Command:
    """Report the bound of one merge, or of several side by side: a page, report.json, figures, terminal tables.

    ``mergebound report show report.json`` prints the tables again; ``mergebound report export report.json`` writes them
    as LaTeX, CSV or Markdown.
    """

    merged: tuple[Path, ...]
    """Artifacts made by mergebound merge, from the same suite."""
    suite: str | None = None
    """Where the suite is now (default: where the artifacts say it was)."""
    out: Path = Path("report")
    """Folder for report.html, report.json, figures and the cache."""
    json: str | None = None
    """Write the JSON here too; - writes it to standard output and nothing else."""
    sections: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Only these: {' '.join(SECTIONS)} (default: all).")] = ()
    budget_seconds: float | None = None
    """Begin no section after so many seconds; what is missing is named, and a later run goes on from there."""
    device: str = "cpu"
    """Device of PyTorch, e.g. cuda."""
    workers: int | None = None
    """Processes (default: one per CPU; 1 on other devices)."""
    alpha: tuple[float, ...] = ()
    """Evaluation weight of each task, summing to 1 (default: equal)."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(sys.argv[1:] if arguments is None else list(arguments)))


def _main(arguments: Sequence[str]) -> None:
    name, *rest = arguments or [""]
    if name in SUBCOMMANDS:
        SUBCOMMANDS[name](rest)
    elif name and not name.startswith("-"):
        cure = meant(name, SUBCOMMANDS, "see mergebound report --help")
        refuse("report command", expected=f"options, {' or '.join(SUBCOMMANDS)}", got=repr(name), cure=cure)
    else:
        report(options(Command, arguments, "mergebound report"))


def report(command: Command) -> None:
    """Load, measure, write and print."""
    started = time.perf_counter()
    copy = Path(command.json) if command.json not in (None, "-") else None
    with processes() as together:
        workspace = prepare(
            command.merged,
            command.out,
            command.settings,
            command.alpha,
            command.device,
            command.workers,
            command.sections,
            together,
            files=FILES,
            copy=copy,
            suite=command.suite,
        )
        result = build(workspace, command.sections, command.budget_seconds)
    if together.rank:
        return
    with stage(f"drawing and writing {command.out}"):
        figures = write_report(result, command.out, Cache(command.out / "cache"), workspace.workers)
    if command.json == "-":
        write_json(as_json(result))
        return
    if copy is not None:
        write(copy, encoded(as_json(result)))
    output = console()
    print_report(result, output)
    output.print()
    files = f"{command.out / 'report.html'}, report.json and {figures} figures"
    output.print(plain(f"{files}, {time.perf_counter() - started:.0f} s"))


def prepare(
    merged: Sequence[Path],
    out: Path,
    settings: Settings,
    alpha: Sequence[float],
    device: str,
    workers: int | None,
    sections: Sequence[str] = (),
    together: Processes | None = None,
    *,
    files: Sequence[str] = (),
    copy: Path | None = None,
    suite: str | None = None,
) -> Workspace:
    """Check everything that can be checked at once, and return the workspace; ``together`` share its work.

    ``files`` are written into the folder ``out``, besides figures and cache; ``copy`` is one more output. ``suite`` is
    where the suite is, by default where the artifacts say.

    Raises:
        InputError: see the readers of artifacts, settings, sections, α and devices; a folder that cannot be written.
    """
    subjects = read_subjects(merged)
    check_sections(sections)
    check_subjects(subjects)
    _check_places(merged, out, files, copy)
    read_manifest(out / "figures")
    if workers is not None and workers < 1:
        refuse("workers", expected="at least 1", got=workers, cure="leave it out for one per CPU")
    together = together or Processes()
    count = (
        1
        if check_device(device := local_device(device)) != "cpu"
        else workers or max(1, available() // together.on_this_machine)
    )
    if count > 1:
        torch.set_num_threads(1)
    origin = suite or origin_of(subjects[0])
    workspace = Workspace(
        subjects,
        lambda: _loaded(origin, together),
        settings,
        Cache(out / "cache", together),
        alpha,
        workers=count,
        device=device,
        track=silent if together.rank else track,
        made_of_files=suites.made_of_files(origin) and suites.all_hashed(subjects[0].artifact.sources),
    )
    if suite is not None or origin not in suites.SUITES:  # a shipped suite does not change: it is not even loaded
        workspace.check_suite()
    return workspace


def _loaded(origin: str, together: Processes) -> Suite:
    with nullcontext() if together.rank else stage(f"loading {origin}"):
        return suites.load(origin)


def origin_of(subject: Subject) -> str:
    """Return what finds the suite of an artifact again.

    Raises:
        InputError: the suite was made in memory, or its file is gone.
    """
    artifact, what = subject.artifact, f"artifact {subject.file}"
    origin = artifact.origin or artifact.suite
    if not artifact.origin and origin not in suites.SUITES:
        cure = "name it with --suite, or call diagnostics.report(artifact, suite)"
        refuse(what, expected="one of a suite that can be found again", got=f"suite {origin!r} in memory", cure=cure)
    if origin.endswith((".yaml", ".yml")) and not Path(origin).is_file():
        refuse(what, expected=f"its suite file {origin}", got="nothing there", cure="say where it is now with --suite")
    return origin


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """Read artifacts; a column is headed by the method, or by the file's name where methods repeat.

    Raises:
        InputError: as ``merging.artifact.load``; the same file twice.
    """
    if len({p.resolve() for p in paths}) < len(paths):
        refuse("--merged", expected="different files", got="one file twice", cure="name each artifact once")
    artifacts = [load(path) for path in paths]
    methods = [a.label for a in artifacts]
    stems = [p.stem for p in paths]
    labels = methods if len(set(methods)) == len(methods) else stems if len(set(stems)) == len(stems) else paths
    shown = [[encoded(str(text)).decode() for text in texts] for texts in (labels, paths)]  # names that are no UTF-8
    return [Subject(label, path, a) for label, path, a in zip(*shown, artifacts, strict=True)]


def _check_places(merged: Sequence[Path], out: Path, files: Sequence[str], copy: Path | None) -> None:
    """Check where results go: into a folder whose parent exists, never over an artifact or over one another.

    Raises:
        InputError: they cannot go there.
    """
    check_folder(out, "report folder", files)
    for name in ("figures", "cache"):
        if out.is_dir():
            check_folder(out / name, "report folder")
        if copy is not None and place(copy).is_relative_to(place(out / name)):
            refuse(f"--json {copy}", expected=f"a place outside {out / name}", got="one inside", cure="rename it")
    own = {f"the report's {name}": out / name for name in files} if out.is_dir() else {}
    inputs = {f"--merged {path}": path for path in merged}
    check_outputs({**own, "--json": copy}, inputs)
    if copy is not None and not out.is_dir() and place(copy) in {place(out), *(place(out / name) for name in files)}:
        refuse(f"--json {copy}", expected="another place than the report's", got="the same", cure="rename it")


@dataclass(frozen=True)
class Show:
    """Print a report.json as tables."""

    report: Annotated[Path, tyro.conf.Positional]
    """The file."""


def show(arguments: Sequence[str]) -> None:
    """``mergebound report show report.json``.

    Raises:
        InputError: as :func:`diagnostics.folder.read_report`.
    """
    print_report(read_report(options(Show, arguments, "mergebound report show").report), console())


SUBCOMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {"show": show, "export": report_tables.export}
"""What is done with a report.json that is there."""


if __name__ == "__main__":
    sys.exit(main())
