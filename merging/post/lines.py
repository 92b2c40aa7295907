"""LiNeS: the merged update is scaled by a factor that grows linearly with depth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging.closed_form.scale import SEARCH_SECONDS, SUM_GRID, best_scale, validation_figure
from merging.params import OUTSIDE, partition
from merging.rows import NOTHING, VALIDATION, Merge, PostProcessing, Progress
from merging.task import Split, Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class DepthSettings:
    """Settings of linear scaling by depth: λ(ℓ) = low + rise (ℓ - 1)/(L - 1)."""

    low: float | None = None
    """Factor of the first layer, and of all that lies outside the layers, α of the paper. None: Σ_t τ_t's mean size
    divided by the merged update's, ‖Σ_t τ_t‖₁/(T ‖θ_m - θ_0‖₁), the paper's choice for merges."""
    rise: float | None = None
    """What the last layer has more, β of the paper; None: the best of a grid on the validation split."""

    def __post_init__(self) -> None:
        for name in ("low", "rise"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                refuse(name, expected="a finite number", got=value, cure="leave it out for the paper's choice")

    @property
    def needs(self) -> frozenset[Split]:
        """The validation split, on which a rise that is not given is chosen."""
        return VALIDATION if self.rise is None else NOTHING


def layers(params: Params) -> Blocks:
    """Return the layers in order of depth, with what lies outside them as ``stem`` and ``top``.

    The blocks of :func:`merging.params.partition`; where there are fewer than two, one layer per module that holds
    tensors.

    Raises:
        InputError: one layer only.
    """
    blocks = partition(params, "block")
    if len([block for block in blocks if block not in OUTSIDE]) > 1:
        return blocks
    modules: dict[str, list[str]] = {}
    for name in params:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    if len(modules) < 2:
        refuse("network to scale by depth", expected="at least two layers", got=list(modules), cure="leave +lines out")
    return {module: tuple(names) for module, names in modules.items()}


def depths(params: Params) -> dict[str, float]:
    """Return how deep each tensor lies: (ℓ - 1)/(L - 1), 0 in the first layer and outside the layers, 1 in the last."""
    blocks = layers(params)
    inside = [block for block in blocks if block not in OUTSIDE]
    position = {block: index / (len(inside) - 1) for index, block in enumerate(inside)}
    return {name: position.get(block, 0.0) for block, names in blocks.items() for name in names}


def mean_size(tv: TaskVectors, update: Params) -> float:
    """Return ‖Σ_t τ_t‖₁/(T ‖update‖₁), 1 where nothing was changed; exact, added up in float64."""
    size = sum(float(value.double().abs().sum()) for value in update.values())
    total = sum(float(tv.stacked[name].to(tv.dtype).sum(dim=0).double().abs().sum()) for name in tv.base)
    return total / (len(tv) * size) if size else 1.0


def scaled_by(params: Params, base: Params, factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Return θ_0 + λ (θ - θ_0), tensor by tensor; where λ is 1, θ itself."""
    return {
        name: value if factors[name] == 1 else base[name].to(value) + factors[name] * (value - base[name].to(value))
        for name, value in params.items()
    }


def _lines(merge: Merge, tv: TaskVectors, tasks: Sequence[Task], settings: DepthSettings, progress: Progress) -> Merge:
    depth = depths((tv.whole or tv).base)
    update = {name: value - tv.base[name].to(value) for name, value in merge.params.items()}
    low = mean_size(tv, update) if settings.low is None else settings.low
    history, candidates, rise = dict(merge.history), None, settings.rise

    def factors(rise: float) -> dict[str, float]:
        return {name: low + rise * depth[name] for name in merge.params}

    if rise is None:
        started = time.perf_counter()
        at = lambda rise: scaled_by(merge.params, tv.base, factors(rise))  # noqa: E731
        rise, values = best_scale(tasks, at, SUM_GRID, progress)
        history["lines_rises"], history[f"lines_{validation_figure(tasks)}"] = list(values), list(values.values())
        seconds = time.perf_counter() - started + sum(history.get(SEARCH_SECONDS, ()))
        history[SEARCH_SECONDS], candidates = [seconds], len(SUM_GRID)
    history |= {"lines_factors": [low, low + rise], "lines_rise": [rise]}
    found = factors(rise)
    rows, blocks = scaled_coefficients(merge, found, layers((tv.whole or tv).base))
    return replace(
        merge,
        params=scaled_by(merge.params, tv.base, found),
        coefficients=rows,
        blocks=blocks,
        history=history,
        candidates=candidates,
    )


def scaled_coefficients(
    merge: Merge, factors: Mapping[str, float], by_depth: Blocks
) -> tuple[Tensor | None, Blocks | None]:
    """Return λ [T, L] of the scaled merge with its blocks, None where the merge had none. Exact.

    A block of the merge that lies in several layers becomes one block per layer: of the layer's name where the merge
    had one block for all.
    """
    if merge.coefficients is None or merge.blocks is None:
        return None, None
    layer = {name: block for block, names in by_depth.items() for name in names}
    blocks: dict[str, list[str]] = {}
    columns, scales = [], []
    for column, (block, names) in enumerate(merge.blocks.items()):
        parts = dict.fromkeys(layer[name] for name in names)
        for part in parts:
            key = block if len(parts) == 1 else part if len(merge.blocks) == 1 else f"{block} in {part}"
            blocks[key] = [name for name in names if layer[name] == part]
            columns.append(column)
            scales.append(factors[blocks[key][0]])
    rows = merge.coefficients[:, columns] * torch.tensor(scales, dtype=torch.float64).to(merge.coefficients)
    return rows, {block: tuple(names) for block, names in blocks.items()}


ROWS: Mapping[str, PostProcessing] = {
    "lines": PostProcessing(
        build=_lines,
        settings=DepthSettings,
        paper="LiNeS, Wang et al. 2025, arXiv 2410.17146",
        cost="one pass over the weights; 10 validations to choose the rise",
        choice="rise",
    )
}
