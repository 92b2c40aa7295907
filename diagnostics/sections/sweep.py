"""The distance sweep: every reading along θ_0 → θ_m, θ_0 → expert and random directions of the same norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bounds import ntk
from bounds.flatness import sharpness
from bounds.types import Params, refuse
from diagnostics.plain import from_plain, to_plain
from diagnostics.sections.entk import grams
from diagnostics.subject import Subject
from diagnostics.terms.path import Path, SweepPoint, ntk_radius
from diagnostics.work.cache import digest
from diagnostics.workspace import Pieces, Workspace
from merging.params import norm, squared_norms, subtract
from merging.task_vectors import merged

Mode = Literal["weights", "coefficients"]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
class Direction:
    """A path to sweep: its name, kind, displacement d and grid of s; ``key`` identifies d in the cache.

    ``expert`` is the index j where d = τ_j: J(x)d is known then.
    """

    name: str
    kind: str
    displacement: Params
    key: str
    grid: tuple[float, ...]
    expert: int | None = None


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


def spread_experts(workspace: Workspace, count: int) -> list[int]:
    """Return the indices of ``count`` experts (all, if there are no more), evenly over the order of their distances."""
    sizes = [norm(delta) for delta in workspace.vectors.deltas]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    if count >= len(order):
        return list(range(len(order)))
    places = [len(order) // 2] if count == 1 else [round(k * (len(order) - 1) / (count - 1)) for k in range(count)]
    return sorted(order[place] for place in places)


def even_grid(points: int, largest: float = 2.0) -> tuple[float, ...]:
    """Return ``points`` values of s, evenly over [0, largest]."""
    return tuple(largest * k / (points - 1) for k in range(points))


def merge_direction(workspace: Workspace, subject: Subject, grid: Sequence[float], mode: Mode = "weights") -> Direction:
    """θ_0 → θ_m. In mode ``coefficients`` d = θ_λ - θ_0 is made from λ, so that θ(s) is the merge of s·λ.

    Raises:
        InputError: mode ``coefficients`` for a merge that has none.
    """
    if mode == "weights":
        return Direction(subject.label, "merge", workspace.displacement(subject), subject.key, tuple(grid))
    lam = subject.artifact.coefficients
    if lam is None:
        refuse(
            f"artifact {subject.file}",
            expected="coefficients λ",
            got=f"none: {subject.artifact.method} is not linear in the task vectors",
            cure="use --mode weights",
        )
    theta = merged(workspace.vectors, lam.to(workspace.device), subject.artifact.blocks)
    displacement = subtract(theta, workspace.vectors.base)
    return Direction(f"s·λ of {subject.label}", "merge", displacement, digest("λ", subject.key), tuple(grid))


def expert_direction(workspace: Workspace, index: int, grid: Sequence[float]) -> Direction:
    """θ_0 → expert."""
    name = f"expert {workspace.names[index]}"
    return Direction(name, "expert", workspace.vectors.deltas[index], digest("expert", index), tuple(grid), index)


def random_direction(workspace: Workspace, subject: Subject, index: int, grid: Sequence[float]) -> Direction:
    """Return a Gaussian direction whose norm on every tensor is that of θ_m - θ_0."""
    displacement = workspace.displacement(subject)
    seed = workspace.settings.seed + index
    generator = torch.Generator().manual_seed(seed)
    random: dict[str, torch.Tensor] = {}
    for name, length in squared_norms(displacement, {n: (n,) for n in displacement}).items():
        like = displacement[name]
        drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        random[name] = (drawn * (length**0.5 / float(drawn.norm()))).to(like.device)
    return Direction(
        f"random direction {index + 1}", "random", random, digest("random", seed, subject.key), tuple(grid)
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
    paths = _paths(workspace, subject, directions)
    at_base = workspace.pieces(grams(workspace, "θ_0", workspace.vectors.base), "kernel at θ_0") if local.drift else []
    wanted = [(0 if s == 0 else i, s) for i, d in enumerate(directions) for s in d.grid]
    jobs = list(dict.fromkeys(wanted))

    def evaluate(index: int) -> Mapping[str, Any]:
        path, s = jobs[index]
        theta = paths[path].weights(s)
        drift = _drift(workspace, at_base, theta) if local.drift else {}
        sharp = {"sharpness": _sharpness(workspace, theta)} if local.sharpness else {}
        return to_plain(replace(paths[path].point(s), **drift, **sharp))

    key = digest(
        workspace.key("held_out", "kernel", "train", "draws", "weight_draws", "delta", "seed", "gram", "rho"),
        workspace.alpha,
        local,
        [(d.key, d.grid) for d in directions],
    )
    found = workspace.pieces(Pieces("sweep", key, evaluate, len(jobs)), f"{subject.label}: distance sweep")
    at = dict(zip(jobs, [from_plain(SweepPoint, dict(piece)) for piece in found], strict=True))
    points = iter([at[job] for job in wanted])
    settings, tasks = workspace.settings, workspace.suite.tasks
    results = []
    for direction in directions:
        own = tuple(next(points) for _ in direction.grid)
        radius = ntk_radius([p.distance for p in own], [p.residual for p in own], settings.tolerance)
        results.append(
            SweepPath(direction.name, direction.kind, norm(direction.displacement), settings.tolerance, radius, own)
        )
    examples = min(settings.held_out, *(len(task.test) for task in tasks))
    return SweepSection(mode, examples, min(settings.gram, examples), settings.rho, tuple(results))


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
