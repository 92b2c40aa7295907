"""The distance sweep: every reading along θ_0 → θ_m, θ_0 → expert and random directions of the same norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bounds import ntk
from bounds.flatness import sharpness
from bounds.theorems import READINGS
from bounds.types import Params
from diagnostics.figures.svg import FAINT, INK
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.bound import BoundSection
from diagnostics.sections.directions import (
    Direction,
    Mode,
    even_grid,
    expert_direction,
    merge_direction,
    random_direction,
    spread_experts,
)
from diagnostics.sections.entk import grams
from diagnostics.subject import Subject
from diagnostics.terms.path import Path, SweepPoint, ntk_radius
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm
from merging.plain import from_plain, to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class SweepPath:
    """One path; ``kind`` is merge, expert or random; ``norm`` = ‖d‖, the distance at s = 1.

    ``ntk_radius`` is the smallest distance at which the residual reaches ``tolerance`` (None: nowhere on the path).
    """

    name: str
    kind: str
    norm: float
    tolerance: float
    ntk_radius: float | None
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True, kw_only=True)
class SweepSection:
    """The merge's path first, then the controls; ``examples`` held-out examples per task behind every number.

    The drift rests on ``gram_examples`` of them; ``rho`` is the radius of the sharpness.
    """

    mode: str
    examples: int
    gram_examples: int
    rho: float
    paths: tuple[SweepPath, ...]


@dataclass(frozen=True)
class Local:
    """What else to measure at every point; both take longer than the bounds themselves."""

    drift: bool = False
    sharpness: bool = False


def compute(workspace: Workspace, subject: Subject) -> SweepSection:
    """Sweep the merge, ``control_experts`` experts from the nearest to the farthest, and one random direction."""
    settings = workspace.settings
    grid, few = even_grid(settings.points), even_grid(settings.control_points)
    return sweep(
        workspace,
        subject,
        [
            merge_direction(workspace, subject, grid),
            *(expert_direction(workspace, j, few) for j in spread_experts(workspace, settings.control_experts)),
            random_direction(workspace, subject, 0, few),
        ],
    )


def _paths(workspace: Workspace, subject: Subject, directions: Sequence[Direction]) -> list[Path]:
    """Measure J(x)d of all directions together; an expert's is among the Jacobian products at θ_0."""
    new = [d for d in directions if d.expert is None]
    wanted = [workspace.tangents(d.key, d.displacement) for d in new]
    found = dict(zip([d.key for d in new], workspace.gather(wanted, f"{subject.label}: along the paths"), strict=True))
    return [
        workspace.path(
            d.displacement,
            [piece["tangents"] for piece in found[d.key]]
            if d.expert is None
            else [world.tangents[d.expert] for world in workspace.experts.worlds],
        )
        for d in directions
    ]


def sweep(
    workspace: Workspace,
    subject: Subject,
    directions: Sequence[Direction],
    mode: Mode = "weights",
    local: Local = Local(),
) -> SweepSection:
    """Evaluate every direction on its grid; all points are independent pieces of work, s = 0 is one for all paths."""
    made_paths = workspace.reads.make(lambda: _paths(workspace, subject, directions))
    made_base = workspace.reads.make(lambda: _at_base(workspace) if local.drift else [])
    wanted = [(0 if s == 0 else i, s) for i, d in enumerate(directions) for s in d.grid]
    jobs = list(dict.fromkeys(wanted))

    def evaluate(index: int) -> Mapping[str, Any]:
        path, s = jobs[index]
        paths = made_paths.take()
        theta = paths[path].weights(s)
        drift = _drift(workspace, made_base.take(), theta) if local.drift else {}
        sharp = {"sharpness": _sharpness(workspace, theta)} if local.sharpness else {}
        return to_plain(replace(paths[path].point(s), **drift, **sharp))

    of = local, [(d.key, d.grid) for d in directions]
    found = workspace.pieces(Pieces("sweep", of, evaluate, len(jobs)), f"{subject.label}: distance sweep")
    at = dict(zip(jobs, [from_plain(SweepPoint, dict(piece)) for piece in found], strict=True))
    points = iter([at[job] for job in wanted])
    settings, tasks = workspace.settings, workspace.suite.tasks
    tolerance, results = settings.tolerance, []
    for d in directions:
        own = tuple(next(points) for _ in d.grid)
        radius = ntk_radius([p.distance for p in own], [p.residual for p in own], tolerance)
        size = norm(d.displacement)
        results.append(
            SweepPath(name=d.name, kind=d.kind, norm=size, tolerance=tolerance, ntk_radius=radius, points=own)
        )
    examples = min(settings.held_out, *(len(task.test) for task in tasks))
    grams = min(settings.gram, examples)
    return SweepSection(mode=mode, examples=examples, gram_examples=grams, rho=settings.rho, paths=tuple(results))


def _at_base(workspace: Workspace) -> list[Mapping[str, Any]]:
    return workspace.pieces(grams(workspace, "θ_0", workspace.vectors.base), "kernel at θ_0")


def _drift(workspace: Workspace, at_base: Sequence[Mapping[str, Any]], theta: Params) -> dict[str, float]:
    after = grams(workspace, "", theta).function
    drifts = [ntk.gram_drift(before["gram"], after(i)["gram"]) for i, before in enumerate(at_base)]
    weighted = list(zip(workspace.alpha, drifts, strict=True))
    return {
        "rotation": sum(a * d.rotation.value for a, d in weighted),
        "relative_change": sum(a * d.relative_change.value for a, d in weighted),
    }


def _sharpness(workspace: Workspace, theta: Params) -> float:
    rho = workspace.settings.rho
    return sum(
        a * sharpness(task.forward, theta, workspace.held_out(task), rho).increase
        for a, task in zip(workspace.alpha, workspace.suite.tasks, strict=True)
    )


def table(view: View, part: SweepSection) -> Table:
    """Return the merge's path, a row per point."""
    return path_table(part.paths[0], part.examples)


def path_table(path: SweepPath, examples: int) -> Table:
    """One path of a sweep, a row per point."""
    radius = "nowhere" if path.ntk_radius is None else f"at {path.ntk_radius:.2f}"
    crossed = f"residual {path.tolerance:g} crossed {radius}"
    table = Table(title=plain(f"{path.name}: along θ_0 + s·d, n = {examples} per task; {crossed}", "table.title"))
    extra: Mapping[str, Callable[[SweepPoint], float | None]] = {
        "rotation S": lambda p: p.rotation,
        "‖ΔK‖/‖K_0‖": lambda p: p.relative_change,
        "sharpness": lambda p: p.sharpness,
    }
    measured = {name: of for name, of in extra.items() if of(path.points[0]) is not None}
    columns = ("s", "distance", "risk", "error %", "assumed-linear", "linearised", "corrected", "ε⁺", "residual")
    for column in (*columns, *measured):
        table.add_column(column, justify="right")
    for p in path.points:
        bounds = [f"{value:.2f}" for value in p.bounds.values()]
        table.add_row(
            f"{p.s:.2f}", f"{p.distance:.2f}", f"{p.risk.value:.3f}", f"{100 * p.error:.1f}", *bounds,
            f"{p.transfer.value:.3f}", f"{p.residual:.3f}", *(f"{of(p):.3f}" for of in measured.values()),
        )  # fmt: skip
    return table


def sentence(view: View, part: SweepSection) -> str:
    """Where the merge lies: inside or outside the NTK radius."""
    path = part.paths[0]
    at = f"At distance {path.norm:.2f} from θ_0 the merge lies "
    if path.ntk_radius is None:
        reached = path.points[-1].distance
        return at + f"inside the NTK radius: the residual stays below {path.tolerance:g} up to distance {reached:.2f}."
    side = "inside" if path.norm <= path.ntk_radius else "outside"
    one = min(path.points, key=lambda p: abs(p.s - 1))
    return at + (
        f"{side} the NTK radius {path.ntk_radius:.2f} (residual {path.tolerance:g}): the linearisation misses "
        f"{100 * one.residual:.0f} % of the change of the scores at s = {one.s:g}."
    )


def figure(view: View, part: SweepSection) -> Figure:
    """Risk, three bounds, ε⁺ (above) and residual (below) along the merge's path."""
    bound = view.part(BoundSection)
    return draw_path(part, part.paths[0], bound.trivial_risk if bound else None)


def draw_path(section: SweepSection, path: SweepPath, trivial: float | None) -> Figure:
    """Draw one path of a sweep; drift and sharpness have panels of their own where they were measured."""
    from diagnostics.figures import style

    local = [name for name in ("rotation", "sharpness") if getattr(path.points[0], name) is not None]
    figure = style.new_figure(5.2 + 1.3 * len(local))
    axes, below, *more = figure.subplots(
        2 + len(local), 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1, *[1] * len(local)]}
    )
    distance = [p.distance for p in path.points]
    _draw_risks(axes, section, path, trivial)
    below.plot(distance, [p.residual for p in path.points], color=style.PURPLE, marker="o", markersize=3.5)
    below.axhline(path.tolerance, color=FAINT, linestyle="--", linewidth=1)
    below.set_ylabel("residual\n(ratio)")
    below.set_ylim(0, None)
    for name, panel in zip(local, more, strict=True):
        (_draw_drift if name == "rotation" else _draw_sharpness)(panel, section, path)
    for panel in (axes, below, *more):
        panel.axvline(path.norm, color=INK, linestyle=":", linewidth=1)
        if path.ntk_radius is not None:
            panel.axvspan(0, path.ntk_radius, color=style.SKY, alpha=0.2, linewidth=0)
    [axes, below, *more][-1].set_xlabel(
        "distance ‖θ(s) − θ_0‖ (weights), θ(s) = θ_0 + s·d; residual ‖f − f^lin‖/‖f − f_0‖"
    )
    radius = "never" if path.ntk_radius is None else f"{path.ntk_radius:.2f}"
    title = f"{style.named(path.name)}: dotted line s = 1; shaded: NTK radius {radius} (residual {path.tolerance:g})"
    axes.set_title(title, loc="left")
    style.legend_below(figure, axes, 3)
    return figure


def _draw_risks(axes: Any, section: SweepSection, path: SweepPath, trivial: float | None) -> None:
    from diagnostics.figures import style

    distance = [p.distance for p in path.points]
    for reading in READINGS:
        colour, marker, line = style.READING_STYLES[reading]
        values = [p.bounds[reading] for p in path.points]
        axes.plot(
            distance, values, color=colour, marker=marker, markersize=4, linestyle=line, label=f"bound, {reading}"
        )
    axes.errorbar(
        distance, [p.risk.value for p in path.points], yerr=[2 * p.risk.stderr for p in path.points], color=INK,
        marker="D", markersize=3.5, capsize=2, label="measured risk (± 2 s.e.)",
    )  # fmt: skip
    linear = [p.linear_risk.value for p in path.points]
    axes.plot(distance, linear, color=style.SKY, linestyle=":", marker=".", label="risk of f^lin")
    axes.plot(
        distance, [p.transfer.value for p in path.points], color=style.GREEN, marker="x", label="transfer error ε⁺"
    )
    if trivial is not None:
        axes.axhline(trivial, color=FAINT, linestyle="--", linewidth=1, label=f"knowing nothing {trivial:.2f}")
    positive = [v for p in path.points for v in (*p.bounds.values(), p.risk.value) if v > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5 * min(positive))
    axes.set_ylabel(f"cross-entropy (nats)\nn = {section.examples} per task")


def _draw_drift(axes: Any, section: SweepSection, path: SweepPath) -> None:
    from diagnostics.figures import style

    distance = [p.distance for p in path.points]
    rotations = [p.rotation for p in path.points]
    axes.plot(distance, rotations, color=style.VERMILION, marker="o", markersize=3.5, label="rotation S")
    changes = [p.relative_change for p in path.points]
    axes.plot(
        distance, changes, color=style.BLUE, marker="s", markersize=3.5, linestyle="--", label="‖K_s − K_0‖/‖K_0‖"
    )
    axes.set_ylim(0, None)
    axes.set_ylabel(f"drift of eNTK\n(ratio), n = {section.gram_examples}")
    axes.legend(fontsize=7, frameon=False)


def _draw_sharpness(axes: Any, section: SweepSection, path: SweepPath) -> None:
    from diagnostics.figures import style

    values = [p.sharpness for p in path.points]
    axes.plot([p.distance for p in path.points], values, color=style.ORANGE, marker="s", markersize=3.5)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.set_ylabel(f"sharpness (nats)\nρ = {section.rho:g}, n = {section.examples}")


def controls(view: View, part: SweepSection) -> Figure:
    """Measured risk, corrected bound and residual over distance: the merge against experts and random directions."""
    from diagnostics.figures import style

    towards_colours = {
        "merge": (style.VERMILION, "the merge"),
        "expert": (style.BLUE, "an expert"),
        "random": (FAINT, "a random direction"),
    }
    figure = style.new_figure(4.8)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.6, 1]})
    labelled: set[str] = set()
    for path in reversed(part.paths):  # the merge last, on top
        distance, (colour, towards) = [p.distance for p in path.points], towards_colours[path.kind]
        new, width = path.kind not in labelled, 1.6 if path.kind == "merge" else 1.0
        labelled.add(path.kind)
        for values, marker, line, what in (
            ([p.bounds["corrected"] for p in path.points], "o", "-", "corrected bound"),
            ([p.risk.value for p in path.points], "D", ":", "measured risk"),
        ):
            label = f"{what}, towards {towards}" if new else None
            axes.plot(
                distance, values, color=colour, marker=marker, markersize=3.5, linestyle=line, linewidth=width,
                label=label,
            )  # fmt: skip
        below.plot(distance, [p.residual for p in path.points], color=colour, marker="o", markersize=3, linewidth=width)
    values = [v for p in part.paths for q in p.points for v in (q.bounds["corrected"], q.risk.value)]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_ylabel(f"cross-entropy (nats)\nn = {part.examples} per task")
    below.axhline(view.settings.tolerance, color=FAINT, linestyle="--", linewidth=1)
    below.set_ylabel("residual (ratio)")
    below.set_ylim(0, None)
    below.set_xlabel("distance ‖θ(s) − θ_0‖ (Euclidean, weights); dashed: tolerance of the residual")
    style.legend_below(figure, axes, 2)
    return figure


SECTION = Section(
    kind=SweepSection,
    compute=compute,
    title="How far from θ_0 one can go",
    link="distance",
    how=("5a", "7"),
    table=table,
    figures={"sweep": Drawn(figure), "controls": Drawn(controls)},
    sentence=sentence,
)
