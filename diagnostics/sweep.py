"""``python -m diagnostics.sweep --merged out.pt``: every reading of the bound against the distance from θ_0.

Per point: risk and error, every reading with its terms and gap, ε⁺, residual, drift of the kernel, sharpness.

Paths: θ_0 → θ_m, θ_0 → experts, and as control random directions with the norm of θ_m - θ_0 on every tensor.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bounds.types import meant, refuse
from diagnostics.bound_report import prepare
from diagnostics.figures.figure_files import write_figures
from diagnostics.sections.directions import (
    Direction,
    Mode,
    even_grid,
    expert_direction,
    merge_direction,
    random_direction,
)
from diagnostics.sections.paths import SweepSection
from diagnostics.sections.sweep import SECTION, Local, path_table, sweep
from diagnostics.sections.sweep_figures import draw_path
from diagnostics.settings import Settings
from diagnostics.work.cache import write
from diagnostics.workspace import Workspace
from merging.commands import console, options, plain, run, stage
from merging.files import encoded
from merging.plain import to_plain

_Unused = Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress]
"""A setting that the sweep does not read: no option of this command."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """How much to measure. Every example count is per task."""

    control_points: _Unused = Settings.control_points
    control_experts: _Unused = Settings.control_experts
    hessian: _Unused = Settings.hessian
    gram: int = 4
    """Test examples in the kernel's Gram matrix, for its drift; 0 leaves it out."""
    gibbs_draws: _Unused = Settings.gibbs_draws
    resamples: _Unused = Settings.resamples
    splits: _Unused = Settings.splits
    labels: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = Settings.labels


FILES = ("sweep.csv", "sweep.json")
"""What is written into the folder, besides figures and cache."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Sweep the distance from the pretrained weights: sweep.csv, sweep.json, a figure per path and terminal tables."""

    merged: Path
    """The artifact made by mergebound merge."""
    suite: str | None = None
    """Where the suite is now (default: where the artifact says it was)."""
    out: Path = Path("report")
    """Folder for sweep.csv, sweep.json, figures and the cache (shared with the report)."""
    mode: Mode = "weights"
    """weights: θ_0 + s(θ_m - θ_0). coefficients: the merge of s·λ, for merges that have a λ."""
    s: tuple[float, ...] = ()
    """Grid of s, the same on every path (default: --points values, evenly over [0, 2])."""
    experts: tuple[str, ...] = ("all",)
    """Tasks whose expert's path is swept too; all for every one, none for no one."""
    random_directions: int = 1
    """Number of random control directions."""
    drift: bool = True
    """Measure how far the kernel turns and changes at every point: about twice the time of the bounds."""
    sharpness: bool = True
    """Measure the sharpness at every point: about the time of the bounds once more."""
    device: str = "cpu"
    """Device of PyTorch, e.g. cuda."""
    workers: int | None = None
    """Processes (default: one per CPU; 1 on other devices)."""
    alpha: tuple[float, ...] = ()
    """Evaluation weight of each task, summing to 1 (default: equal)."""
    settings: Annotated[SweepSettings, tyro.conf.arg(name="")] = field(default_factory=SweepSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(options(Command, arguments, "mergebound sweep")))


def _main(command: Command) -> None:
    if command.s and command.settings.points != Settings.points:
        refuse("grid of s", expected="--s or --points", got="both", cure="leave one out")
    grid = command.s or even_grid(command.settings.points)
    check_grid(grid)
    if command.random_directions < 0:
        refuse("random directions", expected="0 or more", got=command.random_directions, cure="0 leaves them out")
    workspace = prepare(
        [command.merged],
        command.out,
        command.settings,
        command.alpha,
        command.device,
        command.workers,
        files=FILES,
        suite=command.suite,
    )
    directions = _directions(command, workspace, grid)  # refuses names before the suite is read
    if (reason := SECTION.unserved(workspace.scored)) is not None:
        got = f"one row of scores for every {workspace.scored}"
        refuse(f"sweep of {command.merged}", expected="tasks that it serves", got=got, cure=reason)
    local = Local(assumed=True, drift=command.drift and command.settings.gram > 0, sharpness=command.sharpness)
    section = sweep(workspace, workspace.subjects[0], directions, command.mode, local)
    trivial = workspace.trivial_risk
    command.out.mkdir(exist_ok=True)
    write(command.out / "sweep.csv", encoded(as_csv(section)))
    text = json.dumps(to_plain(section), indent=1, ensure_ascii=False, allow_nan=False)
    write(command.out / "sweep.json", encoded(f"{text}\n"))
    with stage("drawing figures"):
        _write_figures(section, trivial, command.out)
    output = console()
    for path in section.paths:
        output.print(path_table(path, section.examples, section.policies if path is section.paths[0] else ()))
        output.print()
    output.print(plain(f"{command.out / 'sweep.csv'}, sweep.json and {len(section.paths)} figures"))


def check_grid(grid: Sequence[float]) -> None:
    """Check a grid of s: at least two finite values >= 0, increasing.

    Raises:
        InputError: it is not.
    """
    good = len(grid) > 1 and all(math.isfinite(s) and s >= 0 for s in grid)
    if not good or any(b <= a for a, b in itertools.pairwise(grid)):
        refuse("grid of s", expected="two or more increasing numbers >= 0", got=list(grid), cure="e.g. --s 0 0.5 1 2")


def _directions(command: Command, workspace: Workspace, grid: Sequence[float]) -> list[Direction]:
    names, subject = list(workspace.names), workspace.subjects[0]
    unknown = [e for e in command.experts if e not in (*names, "all", "none")]
    if unknown or (len(command.experts) > 1 and {"all", "none"} & {*command.experts}):
        expected = f"all, none, or some of {', '.join(names)}"
        cure = meant(unknown[0] if unknown else "", names, "name tasks of the suite")
        refuse("experts", expected=expected, got=unknown or list(command.experts), cure=cure)
    chosen = [i for i, name in enumerate(names) if name in command.experts or "all" in command.experts]
    return [
        merge_direction(workspace, subject, grid, command.mode),
        *(expert_direction(workspace, i, grid) for i in chosen),
        *(random_direction(workspace, subject, i, grid) for i in range(command.random_directions)),
    ]


def as_csv(section: SweepSection) -> str:
    """Return a row per path, s and reading: the bound, its gap to the measured risk, every term. Risks in nats.

    A column that was not measured (or a radius beyond the path) is empty; the slack of the anchors is the first path's.
    """
    terms = list(
        dict.fromkeys(name for path in section.paths for p in path.points for row in p.terms.values() for name in row)
    )
    fixed = (
        "path", "kind", "s", "distance", "ntk_radius", "tolerance", "examples_per_task", "risk", "risk_stderr", "error",
        "linear_risk", "transfer_error", "residual", "kernel_rotation", "kernel_relative_change", "sharpness",
        "gram_examples_per_task", "rho", "reading", "bound", "gap", *(f"slack: {p.name}" for p in section.policies),
    )  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fixed, *(f"term: {name}" for name in terms)])
    for path in section.paths:
        for index, p in enumerate(path.points):
            slack = [q.slack[index].value if path is section.paths[0] else "" for q in section.policies]
            for reading, value in p.bounds.items():
                row = (
                    path.name, path.kind, p.s, p.distance, path.ntk_radius, path.tolerance, section.examples,
                    p.risk.value, p.risk.stderr, p.error, p.linear_risk.value, p.transfer.value, p.residual, p.rotation,
                    p.relative_change, p.sharpness, section.gram_examples, section.rho, reading, value, p.gaps[reading],
                    *slack,
                )  # fmt: skip
                writer.writerow([*row, *(p.terms[reading].get(name, "") for name in terms)])
    return out.getvalue()


def _write_figures(section: SweepSection, trivial: float, folder: Path) -> None:
    from diagnostics.figures.style import as_images

    drawings = {}
    for index, path in enumerate(section.paths):
        name = f"path-{index + 1}-{path.kind}"
        drawings[name] = as_images(lambda path=path: draw_path(section, path, trivial), name)
    write_figures(folder / "figures", "sweep", drawings)


if __name__ == "__main__":
    sys.exit(main())
