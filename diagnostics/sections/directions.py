"""Where the distance sweep goes: from θ_0 to the merge, to experts, and in random directions of the same norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bounds.types import Params, refuse
from diagnostics.subject import Subject
from diagnostics.work.cache import digest
from diagnostics.workspace import Workspace
from merging.params import norm, squared_norms, subtract
from merging.task_vectors import merged

Mode = Literal["weights", "coefficients"]


@dataclass(frozen=True, kw_only=True)
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
        return Direction(
            name=subject.label,
            kind="merge",
            displacement=workspace.displacement(subject),
            key=subject.key,
            grid=tuple(grid),
        )
    lam = subject.artifact.coefficients
    if lam is None:
        refuse(
            f"artifact {subject.file}",
            expected="coefficients λ",
            got=f"none: {subject.artifact.label} is not linear in the task vectors",
            cure="use --mode weights",
        )
    theta = merged(workspace.vectors, lam.to(workspace.device), subject.artifact.blocks)
    displacement = subtract(theta, workspace.vectors.base)
    return Direction(
        name=f"s·λ of {subject.label}",
        kind="merge",
        displacement=displacement,
        key=digest("λ", subject.key),
        grid=tuple(grid),
    )


def expert_direction(workspace: Workspace, index: int, grid: Sequence[float]) -> Direction:
    """θ_0 → expert."""
    name = f"expert {workspace.names[index]}"
    return Direction(
        name=name,
        kind="expert",
        displacement=workspace.vectors.deltas[index],
        key=digest("expert", index),
        grid=tuple(grid),
        expert=index,
    )


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
        name=f"random direction {index + 1}",
        kind="random",
        displacement=random,
        key=digest("random", seed, subject.key),
        grid=tuple(grid),
    )
