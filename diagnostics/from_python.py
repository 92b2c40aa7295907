"""A report on merges that are in memory, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bounds.types import refuse
from diagnostics.figures.figure_files import read_manifest
from diagnostics.folder import FILES, write_report
from diagnostics.report import Report, build
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.text import print_report
from diagnostics.work.cache import Cache
from diagnostics.work.workers import Track
from diagnostics.workspace import Workspace
from merging.artifact import MergeArtifact
from merging.commands import console
from merging.files import check_folder
from merging.rows import silent
from merging.suites import Suite


@dataclass(frozen=True)
class Reported:
    """A report with its numbers (``data``, the content of report.json)."""

    data: Report

    def save(self, folder: str | Path) -> Path:
        """Write report.html, report.json and the figures into a folder, which is made; return the page's path.

        Raises:
            InputError: a folder that cannot be made or written.
        """
        folder = check_folder(folder, "report folder", FILES)
        read_manifest(folder / "figures")
        write_report(self.data, folder, Cache(None))
        return folder / FILES[0]

    def print(self) -> None:
        """Print verdict and tables."""
        print_report(self.data, console())


def report(
    artifacts: MergeArtifact | Mapping[str, MergeArtifact],
    suite: Suite,
    *,
    settings: Settings | None = None,
    sections: Sequence[str] = (),
    alpha: Sequence[float] = (),
    workers: int = 1,
    device: str = "cpu",
    track: Track = silent,
) -> Reported:
    """Report what theory says about a merge, or about several side by side.

    Args:
        artifacts: what :func:`merging.merge` returned; several by the label of their column.
        suite: the suite they were made from.
        settings: how much to measure.
        sections: names of sections (default: all).
        alpha: evaluation weights [T], summing to 1 (default: equal).
        workers: processes.
        device: device of PyTorch.
        track: shows progress.

    Raises:
        InputError: no artifact; artifacts that are not of this suite; see :func:`diagnostics.report.build`.
    """
    named = {artifacts.label: artifacts} if isinstance(artifacts, MergeArtifact) else dict(artifacts)
    if not named:
        refuse("artifacts", expected="at least one", got="none", cure="pass what merge() returned")
    subjects = [Subject(label, "in memory", artifact) for label, artifact in named.items()]
    workspace = Workspace(
        subjects, lambda: suite, settings or Settings(), None, alpha, workers=workers, device=device, track=track
    )
    return Reported(build(workspace, sections))
