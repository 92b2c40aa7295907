"""Model Stock: average the experts, then go back towards θ_0 as far as the angles between them say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from merging.params import partition
from merging.rows import Merge, Method, NoSettings, Progress
from merging.task import Task
from merging.task_vectors import Geometry, TaskVectors, merged


def mean_cosine(cosines: Sequence[Sequence[float]]) -> float:
    """Return the mean of the cosines [T, T] over the pairs of different tasks; 1 where there is no pair."""
    pairs = [value for i, row in enumerate(cosines) for value in row[:i]]
    return sum(pairs) / len(pairs) if pairs else 1.0


def stock_share(cosine: float, tasks: int) -> float:
    """Return t of the merge t·mean(θ_t) + (1 - t)·θ_0: T cos / (1 + (T - 1) cos), 0 where the cosine is not positive.

    Exact where the experts are equally far from a centre µ, which sees θ_0 and all of them at right angles: the merge
    is then the point nearest to µ on the plane through θ_0 and the experts. There the cosine is positive, so one that
    is not is taken as 0. Source: Jang et al. 2024, arXiv 2403.19522.
    """
    return tasks * cosine / (1 + (tasks - 1) * cosine) if cosine > 0 else 0.0


def _model_stock(tv: TaskVectors, tasks: Sequence[Task], settings: NoSettings, progress: Progress) -> Merge:
    names = list(tv.base)
    steps = progress(range(len(names)), "angles tensor by tensor")
    cosines = [mean_cosine(Geometry.of(tv.restricted([names[i]])).cosines) for i in steps]
    shares = torch.tensor([stock_share(cosine, len(tv)) / len(tv) for cosine in cosines], dtype=tv.dtype)
    coefficients, blocks = shares.repeat(len(tv), 1), partition(tv.base, "tensor")
    return Merge(params=merged(tv, coefficients, blocks, out={}), coefficients=coefficients, blocks=blocks)


ROWS: Mapping[str, Method] = {
    "model_stock": Method(
        build=_model_stock,
        settings=NoSettings,
        paper="Model Stock, Jang et al. 2024, arXiv 2403.19522, tensor by tensor",
        cost="T(T - 1)/2 cosines per tensor, one merge",
    ),
}
