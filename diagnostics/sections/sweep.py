"""The distance sweep: what moves along θ_0 → θ_m, θ_0 → expert and random directions of the same norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bounds import ntk
from bounds.flatness import sharpness
from bounds.types import Params, weighted_sum
from diagnostics.sections import sweep_figures
from diagnostics.sections.anchors import best_anchors
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
from diagnostics.sections.paths import Policy, SweepPath, SweepSection
from diagnostics.settings import ANCHORS
from diagnostics.subject import Subject
from diagnostics.terms.path import Path, SweepPoint, ntk_radius
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm
from merging.plain import from_plain, to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Local:
    """What else to measure at every point; each takes longer than the rest.

    ``assumed`` is the assumed-linear reading of (5), which needs a derivative of the network.
    """

    assumed: bool = False
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
        return to_plain(replace(paths[path].point(s, assumed=local.assumed), **drift, **sharp))

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
    least = min(settings.held_out, *(len(task.test) for task in tasks))
    return SweepSection(
        mode=mode,
        examples=len(range(least)[workspace.reported]),
        gram_examples=min(settings.gram, least),
        rho=settings.rho,
        policies=policies(workspace, [p.s for p in results[0].points]),
        paths=tuple(results),
    )


def policies(workspace: Workspace, grid: Sequence[float]) -> tuple[Policy, ...]:
    """Return the slack of three choices of anchors at every s: the experts, c = s on the way to them, best c for each.

    The best c are chosen on one half of the held-out examples and reported on the other. Beyond s = 1 the anchors that
    follow the path stay at the experts.
    """
    following = [min(s, 1.0) for s in grid]
    scales = sorted({*ANCHORS, *following})
    found, beta = dict(zip(scales, workspace.anchors(scales), strict=True)), workspace.beta
    slacks = {
        c: weighted_sum([anchor.slack(workspace.reported) for anchor in row], beta) for c, row in found.items()
    }  # fmt: skip
    best, experts = best_anchors([found[c] for c in ANCHORS], beta), slacks[1.0]
    spread = ", ".join(f"{c:g}" for c in best.c)
    return (
        Policy("experts", "anchors at the experts (c = 1)", (experts,) * len(grid)),
        Policy("path", "anchors follow the path (c = s, at most 1)", tuple(slacks[c] for c in following)),
        Policy(
            "best",
            f"best c of every expert ({spread}), chosen on half of the examples, reported on the other half",
            (best.slack,) * len(grid),
        ),
    )


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
    return path_table(part.paths[0], part.examples, part.policies)


def path_table(path: SweepPath, examples: int, policies: Sequence[Policy] = ()) -> Table:
    """Return one path of a sweep, a row per point; ``policies`` have their slack at its points."""
    radius = "nowhere" if path.ntk_radius is None else f"at {path.ntk_radius:.2f}"
    crossed = f"residual {path.tolerance:g} crossed {radius}"
    table = Table(title=plain(f"{path.name}: along θ_0 + s·d, n = {examples} per task; {crossed}", "table.title"))
    extra: Mapping[str, Callable[[SweepPoint], float | None]] = {
        "rotation S": lambda p: p.rotation,
        "‖ΔK‖/‖K_0‖": lambda p: p.relative_change,
        "sharpness": lambda p: p.sharpness,
    }
    measured = {name: of for name, of in extra.items() if of(path.points[0]) is not None}
    columns = ("s", "distance", "risk", "error %", "risk of f^lin", "ε⁺", "residual")
    for column in (*columns, *measured, *(f"slack: {policy.name}" for policy in policies)):
        table.add_column(column, justify="right")
    for index, p in enumerate(path.points):
        table.add_row(
            f"{p.s:.2f}", f"{p.distance:.2f}", f"{p.risk.value:.3f}", f"{100 * p.error:.1f}",
            f"{p.linear_risk.value:.3f}", f"{p.transfer.value:.3f}", f"{p.residual:.3f}",
            *(f"{of(p):.3f}" for of in measured.values()), *(f"{q.slack[index].value:.2f}" for q in policies),
        )  # fmt: skip
    if policies:
        table.caption = plain(
            "Bound (5), linearised, at any s is the risk of f^lin + the slack of the anchors (5a): "
            + "; ".join(f"{policy.name}: {policy.about}" for policy in policies),
            "table.caption",
        )
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
    """Draw what moves along the merge's path."""
    bound = view.part(BoundSection)
    return sweep_figures.draw_path(part, part.paths[0], bound.trivial_risk if bound else None)


def controls(view: View, part: SweepSection) -> Figure:
    """Draw risk and residual over distance, towards the merge, experts and in a random direction."""
    return sweep_figures.draw_controls(part)


SECTION = Section(
    kind=SweepSection,
    compute=compute,
    title="How far from θ_0 one can go",
    link="distance",
    how=("5a", "7"),
    table=table,
    figures={"sweep": Drawn(figure), "controls": Drawn(controls)},
    sentence=sentence,
    scored={"example"},
    rests_on="f^lin along the path is kept for every score, L·V of an example",
)
