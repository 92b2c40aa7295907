"""ESM: each task keeps the directions in which its task vector moves the outputs of its own inputs most.

Weights are found by running the network (:mod:`merging.closed_form.statistics`); other matrices are merged as TSV-M
merges them, tensors of one axis are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.closed_form.scale import MEAN_GRID, ScaleSettings, direction, scaled
from merging.closed_form.spectral import task_singular_vectors
from merging.closed_form.statistics import CalibrationSettings, calibration, input_products
from merging.closed_form.tensors import as_matrices, is_matrix, thin_svd
from merging.rows import CALIBRATION, Merge, Method, Progress
from merging.task import Task, check_unmasked
from merging.task_vectors import TaskVectors

NOISE = 10
"""Eigenvalues of inputs up to so many roundings of the largest are 0: with few examples most of them are."""


@dataclass(frozen=True)
class EssentialSettings(CalibrationSettings, ScaleSettings):
    """Settings of essential subspace merging."""

    examples: int = 32
    """k: unlabelled calibration examples of each task."""

    def __post_init__(self) -> None:
        CalibrationSettings.__post_init__(self)
        ScaleSettings.__post_init__(self)


def essential_directions(delta: Tensor, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return P [m, k] and A = Pᵀ τ [k, n] of one task: the first principal directions of its shift of outputs. Exact.

    Outputs shift by Δ = X τᵀ; P are the eigenvectors of E[δ δᵀ] = τ G τᵀ, δ a row of Δ, by falling eigenvalue. Shifts
    are not centred, so that what is left out, ‖Δ - Δ P Pᵀ‖², is the sum of the other eigenvalues. Directions with
    none are left out.

    Args:
        delta: τ [m, n], acting as x τᵀ.
        inputs: G = E[x xᵀ] [n, n].
        count: k, at most.
    """
    values, basis = torch.linalg.eigh(inputs)
    values = values.where(values > NOISE * torch.finfo(values.dtype).eps * values[-1], 0)
    left, _, _ = thin_svd(delta @ (basis * values.sqrt()).to(delta))
    left = left[:, :count]
    return left, left.T @ delta


def polarized(values: Tensor) -> Tensor:
    """Return (v/mean v)² of norms v: what is above the mean grows, what is below shrinks; 1 where all are 0."""
    mean = values.mean()
    return (values / mean).square() if bool(mean > 0) else torch.ones_like(values)


def whitened(columns: Tensor) -> Tensor:
    """Return σ̄ U Vᵀ of a matrix U Σ Vᵀ: its directions, all at the mean of its min(m, n) singular values."""
    u, sigma, v = thin_svd(columns)
    return sigma.sum() / max(1, min(columns.shape)) * u @ v.T


def essential(deltas: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """ESM of τ [T, m, n], acting as x τᵀ, before the scaling of layers. Exact for the inputs given.

    arXiv 2602.20208: ⌊m/T⌋ essential directions of each task (:func:`essential_directions`), its A scaled by its
    relative norm squared; the columns of all A scaled likewise; P side by side and A one above the other whitened.

    Args:
        deltas: τ [T, m, n].
        inputs: E[x xᵀ] [n, n] of each task.
    """
    count = max(1, deltas.shape[1] // len(deltas))
    pairs = [essential_directions(delta, product, count) for delta, product in zip(deltas, inputs, strict=True)]
    tasks = polarized(torch.stack([rows.norm() for _, rows in pairs]))
    rows = torch.cat([factor * rows for factor, (_, rows) in zip(tasks, pairs, strict=True)])
    rows = rows * polarized(rows.norm(dim=0))
    return whitened(torch.cat([left for left, _ in pairs], dim=1)) @ whitened(rows)


def layer_factors(vector: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return β of each tensor: its relative norm squared among those of the same name but for its numbers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    found = {}
    for alike in kinds.values():
        factors = polarized(torch.stack([vector[name].norm() for name in alike]))
        found |= dict(zip(alike, factors, strict=True))
    return found


def _esm(tv: TaskVectors, tasks: Sequence[Task], settings: EssentialSettings, progress: Progress) -> Merge:
    check_unmasked(tasks, "method esm")
    inputs = calibration(tv, tasks, settings)
    products = [
        input_products(
            tasks[index].forward, tv.expert(index), inputs[index], batch_size=tasks[index].batch_size(inputs[index])
        )
        for index in progress(range(len(tv)), "inputs of linear weights")
    ]
    linear = [name for name in tv.base if all(name in found for found in products)]

    def one(name: str, deltas: Tensor) -> Tensor:
        if not is_matrix(deltas):
            return deltas.mean(dim=0)
        if name not in linear:
            return task_singular_vectors(as_matrices(deltas)).reshape(deltas.shape[1:])
        axis = products[0][name][0]
        found = essential(deltas if axis == 1 else deltas.mT, [task[name][1] for task in products])
        return found if axis == 1 else found.mT.contiguous()

    vector = direction(tv, one, progress)
    for name, factor in layer_factors(vector, linear).items():
        vector[name] *= factor
    found = scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)
    return Merge(
        params=found.params,
        candidates=found.candidates,
        history={**found.history, "linear_weights": [float(len(linear))]},
    )


_WHITE = "the singular values of the kept directions all become their mean"
ROWS: Mapping[str, Method] = {
    "esm": Method(
        build=_esm,
        settings=EssentialSettings,
        paper="Essential Subspace Merging, Li et al. 2026, arXiv 2602.20208",
        needs=CALIBRATION,
        cost="k forward passes per task, 2T + 2 decompositions per linear weight; 10 validations to choose the scale",
        breaks={"one task": _WHITE, "equal experts": _WHITE},
    )
}
