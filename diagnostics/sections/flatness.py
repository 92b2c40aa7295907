"""Flatness at θ_m: gradient norm per block, sharpness in weights and coefficients, top Hessian eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bounds.autodiff import differentiable
from bounds.empirical_loss import cross_entropy, loss_and_gradient, prepare
from bounds.flatness import sharpness
from bounds.products import BATCH_SIZE
from diagnostics.cache import digest
from diagnostics.workspace import Subject, Workspace
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
    settings, count = workspace.settings, len(workspace.names)
    key = digest(workspace.key("held_out", "hessian", "rho", "seed"), subject.key)
    parts = workspace.pieces(
        "flatness", key, lambda i: _measure(workspace, subject, i), count, f"{subject.label}: flatness"
    )
    weighted = list(zip(workspace.alpha, parts, strict=True))
    gradient = {
        name: torch.stack([a * part["gradient"][name].double() for a, part in weighted]).sum(dim=0)
        for name in workspace.vectors.base
    }
    squares = squared_norms(gradient, workspace.blocks)
    hessian = torch.stack([a * part["hessian"] for a, part in weighted]).sum(dim=0)
    return FlatnessSection(
        min(settings.held_out, *(part["n"] for part in parts)),
        min(settings.hessian, *(part["n"] for part in parts)),
        settings.rho,
        sum(squares.values()) ** 0.5,
        {block: square**0.5 for block, square in squares.items()},
        tuple(part["weights"] for part in parts),
        tuple(part["coefficients"] for part in parts),
        tuple(part["top"] for part in parts),
        tuple(torch.linalg.eigvalsh(hessian).flip(0).tolist()),
    )


def _measure(workspace: Workspace, subject: Subject, index: int) -> Mapping[str, Any]:
    from bounds.curvature import coefficient_hessian, top_eigenvalue  # curvlinops takes a second to import

    task, theta, settings = workspace.suite.tasks[index], workspace.weights(subject), workspace.settings
    sample, deltas = workspace.held_out(task), workspace.vectors.deltas
    few = sample.take(slice(settings.hessian))
    with torch.no_grad(), differentiable():
        labels = prepare(task.forward, theta, sample)
        _, gradient = loss_and_gradient(task.forward, theta, sample, labels, cross_entropy, BATCH_SIZE)
    return {
        "n": len(sample),
        "gradient": {name: value.detach().cpu() for name, value in gradient.items()},
        "weights": sharpness(task.forward, theta, sample, settings.rho).increase,
        "coefficients": sharpness(task.forward, theta, sample, settings.rho, directions=deltas).increase,
        "top": top_eigenvalue(task.forward, theta, few, tolerance=LANCZOS_TOLERANCE),
        "hessian": coefficient_hessian(task.forward, theta, few, deltas),
    }
