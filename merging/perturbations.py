"""Rows of the table of perturbations: which passes a step takes, and the gradient in λ that it descends.

A row sees the network through one function, ``at``: a pass at a displaced point, with losses and gradients there. The
merged weights are recomputed in every pass. SAM: Foret et al., arXiv 2010.01412. Adaptive: Kwon et al., arXiv
2102.11600.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bounds.types import Params


@dataclass(frozen=True)
class Displacement:
    """Where a pass happens: λ + ``coefficients`` [T, L] and, on top of the merge, θ + ``weights``."""

    coefficients: Tensor | None = None
    weights: Params | None = None
    norm: float = 0.0


@dataclass(frozen=True)
class Pass:
    """What a pass returns: loss per task [T], ∇_λ [T, L] and, when asked, ∇_θ of their mean.

    ``weights()`` adds up P numbers over the processes, so that only rows that need it pay for it. It must be called
    before the next pass.
    """

    losses: Tensor
    coefficients: Tensor
    weights: Callable[[], Params]


@dataclass(frozen=True)
class Descent:
    """What a step descends: ∇ [T, L]; the losses [T] of its first pass; the norm of the perturbation."""

    gradient: Tensor
    losses: Tensor
    norm: float = 0.0


class At(Protocol):
    """A pass on the step's batches, at λ or displaced from it."""

    def __call__(self, displacement: Displacement | None = None) -> Pass:
        """Return losses and gradients there."""
        ...


Memory = dict[str, Tensor]
"""What a row keeps between steps (momentum, counters); it is saved with checkpoints."""


@dataclass(frozen=True)
class Perturbation:
    """A row: ``descend(at, λ, ρ, memory)`` and the passes it takes per step."""

    descend: Callable[[At, Tensor, float, Memory], Descent]
    passes: float
    paper: str


def plain(at: At, coefficients: Tensor, rho: float, memory: Memory) -> Descent:
    """Gradient at λ itself."""
    here = at()
    return Descent(here.coefficients, here.losses)


def sharpness_aware(ascend: Callable[[Tensor, Pass, float], Displacement]) -> Callable[..., Descent]:
    """Two passes: the second gradient is taken at the displacement that ``ascend(λ, first pass, ρ)`` gives."""

    def descend(at: At, coefficients: Tensor, rho: float, memory: Memory) -> Descent:
        here = at()
        shift = ascend(coefficients, here, rho)
        return Descent(at(shift).coefficients, here.losses, shift.norm)

    return descend


def in_coefficients(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ g/‖g‖ in λ-space."""
    return _scaled(here.coefficients, here.coefficients, rho)


def in_coefficients_adaptive(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ λ²g/‖|λ|g‖ in λ-space (adaptive SAM): exactly 0 where λ = 0, which the history reports."""
    return _scaled(coefficients.square() * here.coefficients, coefficients.abs() * here.coefficients, rho)


def in_weights(coefficients: Tensor, here: Pass, rho: float) -> Displacement:
    """ε = ρ ∇_θL/‖∇_θL‖ added to the merged weights; the second gradient is contracted to λ."""
    gradient = here.weights()
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


PERTURBATIONS: Mapping[str, Perturbation] = {
    "none": Perturbation(plain, 1, "gradient descent"),
    "coefficients": Perturbation(sharpness_aware(in_coefficients), 2, "SAM, arXiv 2010.01412, in λ"),
    "coefficients-adaptive": Perturbation(
        sharpness_aware(in_coefficients_adaptive), 2, "adaptive SAM, arXiv 2102.11600, in λ"
    ),
    "weights": Perturbation(sharpness_aware(in_weights), 2, "SAM, arXiv 2010.01412, in θ"),
}
