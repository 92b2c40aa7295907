"""What a row of the table of perturbations sees and returns: passes at displaced points, a step, a descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bounds.types import Blocks, Params
from merging.learned.objectives import Objective


@dataclass(frozen=True)
class Displacement:
    """Where a pass happens: λ + ``coefficients`` [T, L] and, on top of the merge, θ + ``weights`` (of any tensors)."""

    coefficients: Tensor | None = None
    weights: Params | None = None
    norm: float = 0.0


@dataclass(frozen=True)
class Pass:
    """What a pass returns: loss per task [T], ∇_λ [T, L] and ∇_θ of their mean (or sum: ``reduction``)."""

    losses: Tensor
    coefficients: Tensor
    weights: Params


@dataclass(frozen=True)
class Descent:
    """What a step descends: ∇ [T, L]; the losses [T] of its first pass; the norm of the perturbation."""

    gradient: Tensor
    losses: Tensor
    norm: float = 0.0


class At(Protocol):
    """A pass on the step's batches, at λ or displaced from it."""

    def __call__(self, displacement: Displacement | None = None, objective: Objective | None = None) -> Pass:
        """Return losses and gradients there.

        ``objective`` replaces the problem's for this pass; it is called on the same batches in the same order in
        every pass of a step, which is how a row sees scores.
        """
        ...


Memory = dict[str, Tensor]
"""What a row keeps between steps (momentum, counters); it is saved with checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that a row sees of a step.

    ``at`` runs passes; ``coefficients`` is λ [T, L], detached; ``rho`` the radius ρ of the perturbation; ``penalty``
    the weight c of a penalty; ``every`` the period k of LookSAM; ``base`` and ``blocks`` are θ_0 and the partition of
    its tensors; ``generator`` is the only source of randomness, ``memory`` the only thing kept between steps.
    """

    at: At
    coefficients: Tensor
    rho: float
    penalty: float
    every: int
    base: Params
    blocks: Blocks
    generator: torch.Generator
    memory: Memory


@dataclass(frozen=True)
class Perturbation:
    """A row: what a step descends, the passes it takes per step (in words where they vary), the paper."""

    descend: Callable[[Step], Descent]
    passes: str
    paper: str
