"""Rows of the table of SAM perturbations: where the second gradient of a step is taken.

Each row maps the first pass's gradients to a displacement of the coefficients λ or of the merged weights θ; the
learner recomputes the merged weights there and takes the gradient again. SAM: Foret et al., arXiv 2010.01412; adaptive:
Kwon et al., arXiv 2102.11600.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Params


@dataclass(frozen=True)
class Displacement:
    """Where the second pass happens: λ + ``coefficients`` [T, L] and, on top of the merge, θ + ``weights``."""

    coefficients: Tensor | None = None
    weights: Params | None = None
    norm: float = 0.0


Perturbation = Callable[[Tensor, Tensor, Params, float], Displacement]
"""(λ [T, L], ∇_λ L [T, L], ∇_θ L, ρ) -> displacement."""


def in_coefficients(coefficients: Tensor, gradient: Tensor, _: Params, rho: float) -> Displacement:
    """ε = ρ g/‖g‖ in λ-space."""
    return _scaled(gradient, gradient, rho)


def in_coefficients_adaptive(coefficients: Tensor, gradient: Tensor, _: Params, rho: float) -> Displacement:
    """ε = ρ λ²g/‖|λ|g‖ in λ-space (adaptive SAM): exactly 0 where λ = 0, which the history reports."""
    return _scaled(coefficients.square() * gradient, coefficients.abs() * gradient, rho)


def in_weights(_: Tensor, __: Tensor, gradient: Params, rho: float) -> Displacement:
    """ε = ρ ∇_θL/‖∇_θL‖ added to the merged weights; the second gradient is contracted to λ."""
    norm = torch.stack([g.norm() for g in gradient.values()]).norm()
    if not float(norm) > 0:
        return Displacement()
    return Displacement(weights={name: g * (rho / norm) for name, g in gradient.items()}, norm=rho)


def _scaled(direction: Tensor, unit: Tensor, rho: float) -> Displacement:
    norm = unit.norm()
    if not float(norm) > 0:
        return Displacement(coefficients=torch.zeros_like(direction))
    epsilon = direction * (rho / norm)
    return Displacement(coefficients=epsilon, norm=float(epsilon.norm()))


PERTURBATIONS: Mapping[str, Perturbation | None] = {
    "none": None,
    "coefficients": in_coefficients,
    "coefficients-adaptive": in_coefficients_adaptive,
    "weights": in_weights,
}
