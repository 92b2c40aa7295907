"""Rows that take a gradient at a point chosen from gradients: SAM and its relatives.

The merged weights are recomputed in every pass. With g = ∇_λ L(λ): SAM descends ∇L(λ + ε), ε = ρ g/‖g‖ (1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from merging.learned.perturbations.passes import Descent, Displacement, Pass, Step

MOMENTUM = 0.9
"""Decay of the momentum that momentum-SAM perturbs along, and of friendly-SAM's average (both papers' default)."""
REUSE = 0.7
"""α of LookSAM: the weight of the reused component (the paper's default)."""
GAP = 0.4
"""α of GSAM: the weight of the surrogate gap (the default of its published code)."""


def plain(step: Step) -> Descent:
    """Gradient at λ itself."""
    here = step.at()
    return Descent(here.coefficients, here.losses)


def sharpness_aware(ascend: Callable[[Tensor, Pass, float], Displacement]) -> Callable[[Step], Descent]:
    """Two passes: the second gradient is taken at the displacement that ``ascend(λ, first pass, ρ)`` gives."""

    def descend(step: Step) -> Descent:
        here = step.at()
        losses, shift = here.losses, ascend(step.coefficients, here, step.rho)
        del here  # its ∇_θ, as large as the network, would stay in memory during the second pass
        return Descent(step.at(shift).coefficients, losses, shift.norm)

    return descend


def in_coefficients(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ g/‖g‖ in λ-space (1)."""
    return displaced(rescale(here.coefficients, rho))


def in_coefficients_adaptive(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ λ²g/‖|λ|g‖ in λ-space (adaptive SAM): exactly 0 where λ = 0, which the history reports."""
    direction, unit = coefficients.square() * here.coefficients, coefficients.abs() * here.coefficients
    return displaced(rescale(direction, rho, unit))


def in_weights(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ ∇_θL/‖∇_θL‖ added to the merged weights; the second gradient is contracted to λ."""
    norm = torch.stack([g.norm() for g in here.weights.values()]).norm()
    if not float(norm) > 0:
        return Displacement()
    return Displacement(weights={name: g * (rho / norm) for name, g in here.weights.items()}, norm=rho)


def momentum(step: Step) -> Descent:
    """One pass at λ - ρ v/‖v‖, v = 0.9 v + gradient: SAM's perturbation from the momentum of the steps before.

    The sign is the paper's (and its code's): the last step along -v has overshot, so -v is taken for ascent. The
    first step, with v = 0, is not perturbed. Source: Becker et al. 2024, arXiv 2401.12033, algorithm 1. Here v is kept
    apart from the optimiser's own state, so that the row goes with every optimiser.
    """
    velocity = step.memory.get("momentum", torch.zeros_like(step.coefficients))
    shift = displaced(rescale(-velocity, step.rho))
    there = step.at(shift)
    step.memory["momentum"] = MOMENTUM * velocity + there.coefficients
    return Descent(there.coefficients, there.losses, shift.norm)


def look(step: Step) -> Descent:
    """SAM every k-th step; between, one pass g + α ‖g‖ v/‖v‖ with v the part of SAM's last gradient orthogonal to g.

    Source: Liu et al. 2022, arXiv 2203.02714, algorithm 1; α = 0.7. Without any v (SAM's gradient was parallel to g)
    the step between is plain.
    """
    count = int(step.memory.get("count", torch.zeros(())))
    step.memory["count"] = torch.tensor(count + 1)
    here = step.at()
    g = here.coefficients
    if count % step.every:
        vertical = step.memory["vertical"]
        return Descent(g + REUSE * rescale(vertical, float(g.norm())), here.losses)
    shift = displaced(rescale(g, step.rho))
    there = step.at(shift).coefficients
    step.memory["vertical"] = there - project(there, g)
    return Descent(there, here.losses, shift.norm)


def friendly(step: Step) -> Descent:
    """SAM with ε along g - m, m the running mean of g: the part of the gradient that is the batch's own noise.

    m starts at the first g, where the whole of g is used. Source: Li et al. 2024, arXiv 2403.12350, algorithm 1 with
    σ = 1, λ = 0.9, the order of its code (the mean before this step's g enters).
    """
    here = step.at()
    g = here.coefficients
    mean = step.memory.get("mean")
    shift = displaced(rescale(g if mean is None else g - mean, step.rho))
    step.memory["mean"] = g.clone() if mean is None else MOMENTUM * mean + (1 - MOMENTUM) * g
    return Descent(step.at(shift).coefficients, here.losses, shift.norm)


def gap(step: Step) -> Descent:
    """SAM's gradient minus α times the part of g orthogonal to it, which also lowers L(λ + ε) - L(λ).

    Source: Zhuang et al. 2022 (GSAM), arXiv 2203.08065, algorithm 1; α = 0.4.
    """
    here = step.at()
    shift = displaced(rescale(here.coefficients, step.rho))
    there = step.at(shift).coefficients
    vertical = here.coefficients - project(here.coefficients, there)
    return Descent(there - GAP * vertical, here.losses, shift.norm)


def gradient_norm(step: Step) -> Descent:
    """Gradient of L + c‖∇L‖ by a finite difference of radius ρ: (1 - c/ρ) g + (c/ρ) ∇L(λ + ρ g/‖g‖).

    Exact where L is quadratic: g + c A g/‖g‖. c = ρ is SAM. Source: Zhao et al. 2022, arXiv 2202.03599, equation (12).
    """
    here = step.at()
    shift = displaced(rescale(here.coefficients, step.rho))
    there = step.at(shift).coefficients
    share = step.penalty / step.rho
    return Descent((1 - share) * here.coefficients + share * there, here.losses, shift.norm)


def rescale(direction: Tensor, length: float, unit: Tensor | None = None) -> Tensor:
    """Return ``length`` · direction/‖unit‖ (by default unit = direction), 0 if that norm is 0."""
    norm = (direction if unit is None else unit).norm()
    return direction * (length / norm) if float(norm) > 0 else torch.zeros_like(direction)


def displaced(epsilon: Tensor) -> Displacement:
    """Displacement of λ by ε [T, L], with its norm."""
    return Displacement(coefficients=epsilon, norm=float(epsilon.norm()))


def project(vector: Tensor, onto: Tensor) -> Tensor:
    """Component of ``vector`` along ``onto`` (0 if that is 0)."""
    square = onto.square().sum()
    return onto * ((vector * onto).sum() / square) if float(square) > 0 else torch.zeros_like(onto)
