"""Flatness at θ_m: gradient norm per block, sharpness in weights and coefficients, top Hessian eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from bounds.autodiff import differentiable
from bounds.flatness import sharpness
from bounds.flatness.loss import loss_and_gradient, prepare
from bounds.jacobian import BATCH_SIZE
from bounds.scores import cross_entropy
from bounds.types import Forward, Params, Sample
from diagnostics.figures.svg import FAINT
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.entk import KernelSection
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import squared_norms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LANCZOS_TOLERANCE = 0.02
"""Relative tolerance of the eigenvalues."""


@dataclass(frozen=True, kw_only=True)
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

    workspace.check_labels("test", "flatness of the risk")
    settings, count = workspace.settings, len(workspace.names)

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
            Pieces("slope", subject.key, lambda index: _slope(workspace, subject, index), count),
            Pieces("curvature", subject.key, curvature, count),
            Pieces("coefficients", subject.key, coefficients, count),
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
        examples=min(settings.held_out, *(part["n"] for part in parts)),
        hessian_examples=min(settings.hessian, *(part["n"] for part in curved)),
        rho=settings.rho,
        gradient_norm=sum(squares.values()) ** 0.5,
        gradient_per_block={block: square**0.5 for block, square in squares.items()},
        sharpness_weights=tuple(part["weights"] for part in parts),
        sharpness_coefficients=tuple(part["coefficients"] for part in parts),
        top_eigenvalues=tuple(part["top"] for part in curved),
        coefficient_eigenvalues=tuple(torch.linalg.eigvalsh(hessian).flip(0).tolist()),
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


def table(view: View, part: FlatnessSection) -> Table:
    """Sharpness and curvature of every task, beside its kernel where that was measured."""
    kernel = view.part(KernelSection)
    measured = f"‖∇L̂‖ = {part.gradient_norm:.3g}, n = {part.examples} per task"
    table = Table(title=plain(f"{view.label}: flatness ({measured}) and kernel", "table.title"))
    columns = ["task", "sharpness, weights", "sharpness, coefficients", "λ_max Hessian"]
    for column in [*columns, *(["effective rank", "rotation", "‖ΔK‖/‖K_0‖"] if kernel else [])]:
        table.add_column(column, justify="left" if column == "task" else "right")
    for i, name in enumerate(view.tasks):
        cells = [
            f"{part.sharpness_weights[i]:.4f}",
            f"{part.sharpness_coefficients[i]:.4f}",
            f"{part.top_eigenvalues[i]:.3g}",
        ]
        if kernel:
            at = kernel.tasks[i]
            cells += [f"{at.effective_rank:.1f}", f"{at.rotation:.3f}", f"{at.relative_change:.2f}"]
        table.add_row(plain(name), *cells)
    return table


def figure(view: View, part: FlatnessSection) -> Figure:
    """Gradient norm per block; sharpness in weights and coefficients and top Hessian eigenvalue per task."""
    import numpy as np

    from diagnostics.figures import style

    figure = style.new_figure(5.6)
    top, middle, bottom = figure.subplots(3, 1, gridspec_kw={"height_ratios": [1, 1.1, 1.1]})
    names = list(part.gradient_per_block)
    top.barh(range(len(names)), list(part.gradient_per_block.values()), color=style.BLUE, height=0.6)
    top.set_yticks(range(len(names)), [style.short(n) for n in names])
    top.invert_yaxis()
    top.set_xlabel(f"‖∇_b L̂‖ (nats per unit of weight), n = {part.examples} per task")
    at = np.arange(len(view.tasks))
    middle.plot(at - 0.08, part.sharpness_weights, "o", color=style.VERMILION, label="in weights")
    middle.plot(at + 0.08, part.sharpness_coefficients, "s", color=style.GREEN, label="in coefficients")
    middle.axhline(0, color=FAINT, linewidth=0.6)
    middle.set_ylabel(f"increase at ρ = {part.rho:g}\n(nats), n = {part.examples}")
    middle.legend(fontsize=8, frameon=False)
    bottom.plot(at, part.top_eigenvalues, "D", color=style.ORANGE)
    bottom.set_yscale("log" if min(part.top_eigenvalues) > 0 else "linear")
    bottom.set_ylabel(f"λ_max of ∇²L̂_t\n(nats/weight²), n = {part.hessian_examples}")
    style.task_axis(middle, view.tasks, shown=False)
    style.task_axis(bottom, view.tasks, shown=True)
    return figure


SECTION = Section(
    kind=FlatnessSection,
    compute=compute,
    title="Flatness",
    link="flatness",
    table=table,
    figures={"flatness": Drawn(figure)},
    late=True,
)
