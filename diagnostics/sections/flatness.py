"""Flatness at θ_m: gradient norm per block, sharpness in weights and coefficients, top Hessian eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from bounds.autodiff import differentiable
from bounds.flatness import sharpness
from bounds.flatness.loss import loss_and_gradient, prepare
from bounds.scores import cross_entropy
from bounds.types import Estimate, Params, Sample, weighted_sum
from diagnostics.figures.numbers import number_estimate
from diagnostics.figures.svg import FAINT
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.entk import KernelSection
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import squared_norms
from merging.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 8
"""Examples of a backward pass: their activations are kept meanwhile, 30 MB each in a ViT-B/32."""
LANCZOS_TOLERANCE = 0.02
"""Relative tolerance of the eigenvalues."""
GROUPS = 8
"""Groups of a task's examples whose spread is the error of the Hessian in coefficients."""


@dataclass(frozen=True, kw_only=True)
class FlatnessSection:
    """Gradient norms of L̂_α per block and whole; per task the increase of its own loss (nats) at radius ρ.

    The Hessian takes minutes on enough examples to mean something, so it is measured where ``--hessian`` asks for it:
    ``top_eigenvalues`` (empty: not measured) is the largest eigenvalue of each task's in the weights,
    ``coefficient_eigenvalues`` are all of that of L̂_α in one coefficient per task vector, descending. ``examples`` and
    ``hessian_examples`` are per task. Status: gradient and sharpness exact for the held-out subsample; eigenvalues
    estimated.
    """

    examples: int
    hessian_examples: int
    rho: float
    gradient_norm: float
    gradient_per_block: Mapping[str, float]
    sharpness_weights: tuple[float, ...]
    sharpness_coefficients: tuple[float, ...]
    top_eigenvalues: tuple[Estimate, ...]
    coefficient_eigenvalues: tuple[Estimate, ...]


def compute(workspace: Workspace, subject: Subject) -> FlatnessSection:
    """Measure each task at θ_m; the α-weighted gradient is summed over tasks before its norm is taken."""
    workspace.check_labels("test", "flatness of the risk")
    settings, count = workspace.settings, len(workspace.names)
    wanted = [
        Pieces("gradient", subject.key, lambda _: _mean_gradient(workspace, subject), 1),
        Pieces("sharpness", subject.key, lambda index: _sharpness(workspace, subject, index), count),
    ]
    if settings.hessian:
        wanted.append(Pieces("curvature", subject.key, lambda index: _curvature(workspace, subject, index), count))
    (gradient,), parts, *bent = workspace.gather(wanted, f"{subject.label}: flatness")
    squares = dict(zip(workspace.blocks, gradient["squares"], strict=True))
    curved = bent[0] if bent else []
    return FlatnessSection(
        examples=min(settings.held_out, *(part["n"] for part in parts)),
        hessian_examples=min((part["top"]["n"] for part in curved), default=0),
        rho=settings.rho,
        gradient_norm=sum(squares.values()) ** 0.5,
        gradient_per_block={block: square**0.5 for block, square in squares.items()},
        sharpness_weights=tuple(part["weights"] for part in parts),
        sharpness_coefficients=tuple(part["coefficients"] for part in parts),
        top_eigenvalues=tuple(Estimate(**part["top"]) for part in curved),
        coefficient_eigenvalues=coefficient_eigenvalues([p["hessians"] for p in curved], workspace.alpha),
    )


def _curvature(workspace: Workspace, subject: Subject, index: int) -> Mapping[str, Any]:
    """Top eigenvalue of one task's Hessian; its Hessians in coefficients [G, T, T] of G groups of examples."""
    from bounds.flatness.curvature import coefficient_hessian, top_curvature  # curvlinops takes long to import

    task, theta = workspace.suite.tasks[index], workspace.weights(subject)
    sample = workspace.held_out(task).take(slice(workspace.settings.hessian))
    size = len(sample) // min(GROUPS, len(sample))
    groups = [sample.take(slice(k * size, (k + 1) * size)) for k in range(len(sample) // size)]
    hessians = [coefficient_hessian(task.forward, theta, group, workspace.vectors.deltas) for group in groups]
    top = top_curvature(task.forward, theta, sample, tolerance=LANCZOS_TOLERANCE)
    return {"top": vars(top), "hessians": torch.stack(hessians)}


def coefficient_eigenvalues(hessians: Sequence[Tensor], alpha: Sequence[float]) -> tuple[Estimate, ...]:
    """Return the eigenvalues of Σ_t α_t mean_g H_tg, descending, with errors over the groups of every task.

    Args:
        hessians: per task [G, D, D], one matrix per group of its examples.
        alpha: weights of the tasks.

    Returns:
        D estimates; n is the number of groups in all. An eigenvalue changes by vᵀ dH v to first order, so its error
        is that of a weighted mean of vᵀH_tg v over the groups. Empty for no tasks. Status: estimated.
    """
    if not hessians:
        return ()
    whole = torch.stack([a * h.mean(dim=0) for a, h in zip(alpha, hessians, strict=True)]).sum(dim=0)
    values, vectors = torch.linalg.eigh(whole)
    found = []
    for value, v in zip(values.flip(0).tolist(), vectors.flip(1).T, strict=True):
        means = [Estimate.of_mean(torch.einsum("i,gij,j->g", v, h, v)) for h in hessians]
        error = weighted_sum(means, alpha)
        found.append(Estimate(value, error.stderr, error.n, "estimated"))
    return tuple(found)


def _mean_gradient(workspace: Workspace, subject: Subject) -> Mapping[str, Any]:
    """Squared norm per block of the α-weighted gradient: one piece of work that adds up the tasks' gradients.

    Kept task by task they would be a network each; their norms alone do not give that of their sum.
    """
    theta, total = workspace.weights(subject), dict[str, Tensor]()
    for a, task in zip(workspace.alpha, workspace.suite.tasks, strict=True):
        _, gradient = _loss_and_gradient(task, theta, workspace.held_out(task))
        for name, value in gradient.items():
            total[name] = total[name].add_(value, alpha=a) if name in total else a * value
    return {"squares": list(squared_norms(total, workspace.blocks).values())}


def _sharpness(workspace: Workspace, subject: Subject, index: int) -> Mapping[str, Any]:
    """Increase of one task's loss at radius ρ, in weights and in coefficients, from one gradient."""
    task, theta, rho = workspace.suite.tasks[index], workspace.weights(subject), workspace.settings.rho
    sample, deltas = workspace.held_out(task), workspace.vectors.deltas
    at = _loss_and_gradient(task, theta, sample)
    spaces = {"weights": None, "coefficients": deltas}
    found = {
        name: sharpness(task.forward, theta, sample, rho, directions=directions, batch_size=BATCH, at=at).increase
        for name, directions in spaces.items()
    }
    return {"n": len(sample), **found}


def _loss_and_gradient(task: Task, theta: Params, sample: Sample) -> tuple[float, dict[str, Tensor]]:
    with torch.no_grad(), differentiable():
        labels = prepare(task.forward, theta, sample)
        value, gradient = loss_and_gradient(task.forward, theta, sample, labels, cross_entropy, BATCH)
    return value, {name: entry.detach() for name, entry in gradient.items()}


def table(view: View, part: FlatnessSection) -> Table:
    """Sharpness (and curvature) of every task, beside its kernel where that was measured."""
    kernel = view.part(KernelSection)
    drifts = kernel.tasks if kernel else ()
    measured = f"‖∇L̂‖ = {part.gradient_norm:.3g}, n = {part.examples} per task"
    table = Table(title=plain(f"{view.label}: flatness ({measured}){' and kernel' if drifts else ''}", "table.title"))
    columns = ["task", "sharpness, weights", "sharpness, coefficients"]
    columns += ["λ_max Hessian"] if part.top_eigenvalues else []
    for column in [*columns, *(["effective rank", "rotation S", "‖ΔK‖/‖K_0‖"] if drifts else [])]:
        table.add_column(column, justify="left" if column == "task" else "right")
    for i, name in enumerate(view.tasks):
        cells = [f"{part.sharpness_weights[i]:.4f}", f"{part.sharpness_coefficients[i]:.4f}"]
        cells += [number_estimate(part.top_eigenvalues[i])] if part.top_eigenvalues else []
        if drifts:
            cells += [number_estimate(e) for e in (drifts[i].effective_rank, drifts[i].rotation, drifts[i].change)]
        table.add_row(plain(name), *cells)
    return table


def figure(view: View, part: FlatnessSection) -> Figure:
    """Gradient norm per block; sharpness in weights and coefficients, and the top Hessian eigenvalue, per task."""
    import numpy as np

    from diagnostics.figures import style

    curved = bool(part.top_eigenvalues)
    figure = style.new_figure(3.9 + 1.7 * curved)
    top, middle, *bottom = figure.subplots(2 + curved, 1, gridspec_kw={"height_ratios": [1, 1.1, 1.1][: 2 + curved]})
    names = list(part.gradient_per_block)
    top.barh(range(len(names)), list(part.gradient_per_block.values()), color=style.BLUE, height=0.6)
    top.set_yticks(range(len(names)), [style.short(n) for n in names])
    top.invert_yaxis()
    top.set_xlabel(f"norm of the gradient per block (nats per unit of weight), n = {part.examples} per task")
    at = np.arange(len(view.tasks))
    middle.plot(at - 0.08, part.sharpness_weights, "o", color=style.VERMILION, label="in weights")
    middle.plot(at + 0.08, part.sharpness_coefficients, "s", color=style.BLUE, label="in coefficients")
    middle.axhline(0, color=FAINT, linewidth=0.6)
    middle.set_ylabel(f"increase at ρ = {part.rho:g}\n(nats), n = {part.examples}")
    middle.legend(fontsize=8, frameon=False)
    for axes in bottom:
        values, errors = ([getattr(e, name) for e in part.top_eigenvalues] for name in ("value", "stderr"))
        axes.errorbar(at, values, yerr=[2 * e for e in errors], color=style.BLUE, marker="D", linestyle="", capsize=2)
        axes.axhline(0, color=FAINT, linewidth=0.6)
        axes.set_ylabel(f"λ_max of the Hessian\n(± 2 s.e.), n = {part.hessian_examples}")
    style.task_axis(middle, view.tasks, shown=not curved)
    for axes in bottom:
        style.task_axis(axes, view.tasks, shown=True)
    return figure


SECTION = Section(
    kind=FlatnessSection,
    compute=compute,
    title="Flatness",
    link="flatness",
    table=table,
    figures={"flatness": Drawn(figure)},
    late=True,
    scored={"example"},
    rests_on="sharpness and Poincaré's term are those of the loss of one label",
)
