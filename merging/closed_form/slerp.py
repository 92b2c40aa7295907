"""Spherical interpolation between the weights of two experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import check_share
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class SlerpSettings:
    """Settings of spherical interpolation."""

    share: float = 0.5
    """Share of the second expert on the way from the first."""

    def __post_init__(self) -> None:
        check_share("share", self.share, zero=True)


def interpolate(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return sin((1-s)Ω)/sin Ω · first + sin(sΩ)/sin Ω · second, Ω the angle between the two as vectors.

    On the straight line where sin Ω < 1e-6 (parallel, opposite or zero vectors have no great circle).
    """
    norms = first.norm() * second.norm()
    angle = torch.arccos((first.flatten() @ second.flatten() / norms).clamp(-1, 1)) if norms > 0 else norms
    if not torch.sin(angle) >= 1e-6:
        return torch.lerp(first, second, share)
    weights = torch.sin(torch.stack([(1 - share) * angle, share * angle])) / torch.sin(angle)
    return (weights[0] * first).addcmul_(weights[1], second)


def _slerp(tv: TaskVectors, tasks: Sequence[Task], settings: SlerpSettings, progress: Progress) -> Merge:
    if len(tv) != 2:
        refuse("slerp", expected="2 experts", got=len(tv), cure="choose two, or another method")
    experts = ((name, tv.expert_tensor(0, name), tv.expert_tensor(1, name)) for name in tv.base)
    return Merge(params={name: interpolate(first, second, settings.share) for name, first, second in experts})


ROWS: Mapping[str, Method] = {
    "slerp": Method(
        build=_slerp,
        settings=SlerpSettings,
        paper="Shoemake 1985, doi 10.1145/325334.325242, on the weights, tensor by tensor",
        cost="one merge",
        breaks={"one task": "merges exactly two"},
        tasks=2,
    ),
}
