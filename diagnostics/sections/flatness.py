"""Flatness at θ_m: gradient norm per block, sharpness in weights and coefficients, top Hessian eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bounds.autodiff import differentiable
from bounds.flatness import sharpness
from bounds.flatness.loss import cross_entropy, loss_and_gradient, prepare
from bounds.jacobian import BATCH_SIZE
from bounds.types import Forward, Params, Sample
from diagnostics.subject import Subject
from diagnostics.work.cache import digest
from diagnostics.workspace import Pieces, Workspace
from merging.params import squared_norms

LANCZOS_TOLERANCE = 0.02
"""Relative tolerance of the eigenvalues."""


@dataclass(frozen=True)
class FlatnessSection:
    """Gradient norms of L̂_α per block and whole; per task the increase of its own loss (nats) at radius ρ.

    ``top_eigenvalues``: largest eigenvalue of each task's Hessian in the weights; ``coefficient_eigenvalues``: all of
    the Hessian of L̂_α in one coefficient per task vector, descending. ``examples`` and ``hessian_examples`` are per
    task. Status: exact for the held-out subsample.
    """

    examples: int
    hessian_examples: int
    rho: float
    gradient_norm: float
    gradient_per_block: Mapping[str, float]
    sharpness_weights: tuple[float, ...]
    sharpness_coefficients: tuple[float, ...]
    top_eigenvalues: tuple[float, ...]
    coefficient_eigenvalues: tuple[float, ...]


def compute(workspace: Workspace, subject: Subject) -> FlatnessSection:
    """Measure each task at θ_m; the α-weighted gradient is summed over tasks before its norm is taken."""
    from bounds.flatness.curvature import (  # curvlinops takes long to import: once, here
        coefficient_hessian,
        top_eigenvalue,
    )

    settings, count = workspace.settings, len(workspace.names)
    key = digest(workspace.key("held_out", "hessian", "rho", "seed"), subject.key)

    def few(index: int) -> tuple[Forward, Params, Sample]:
        task = workspace.suite.tasks[index]
        sample = workspace.held_out(task).take(slice(settings.hessian))
        return task.forward, workspace.weights(subject), sample

    def curvature(index: int) -> Mapping[str, Any]:
        return {"n": len(few(index)[2]), "top": top_eigenvalue(*few(index), tolerance=LANCZOS_TOLERANCE)}

    def coefficients(index: int) -> Mapping[str, Any]:
        return {"hessian": coefficient_hessian(*few(index), workspace.vectors.deltas)}

    parts, curved, bent = workspace.gather(
        [
            Pieces("slope", key, lambda index: _slope(workspace, subject, index), count),
            Pieces("curvature", key, curvature, count),
            Pieces("coefficients", key, coefficients, count),
        ],
        f"{subject.label}: flatness",
    )
    weighted = list(zip(workspace.alpha, parts, strict=True))
    gradient = {
        name: torch.stack([a * part["gradient"][name].double() for a, part in weighted]).sum(dim=0)
        for name in workspace.vectors.base
    }
    squares = squared_norms(gradient, workspace.blocks)
    hessian = torch.stack([a * part["hessian"] for a, part in zip(workspace.alpha, bent, strict=True)]).sum(dim=0)
    return FlatnessSection(
        min(settings.held_out, *(part["n"] for part in parts)),
        min(settings.hessian, *(part["n"] for part in curved)),
        settings.rho,
        sum(squares.values()) ** 0.5,
        {block: square**0.5 for block, square in squares.items()},
        tuple(part["weights"] for part in parts),
        tuple(part["coefficients"] for part in parts),
        tuple(part["top"] for part in curved),
        tuple(torch.linalg.eigvalsh(hessian).flip(0).tolist()),
    )


def _slope(workspace: Workspace, subject: Subject, index: int) -> Mapping[str, Any]:
    task, theta, settings = workspace.suite.tasks[index], workspace.weights(subject), workspace.settings
    sample, deltas = workspace.held_out(task), workspace.vectors.deltas
    with torch.no_grad(), differentiable():
        labels = prepare(task.forward, theta, sample)
        _, gradient = loss_and_gradient(task.forward, theta, sample, labels, cross_entropy, BATCH_SIZE)
    return {
        "n": len(sample),
        "gradient": {name: value.detach().cpu() for name, value in gradient.items()},
        "weights": sharpness(task.forward, theta, sample, settings.rho).increase,
        "coefficients": sharpness(task.forward, theta, sample, settings.rho, directions=deltas).increase,
    }
