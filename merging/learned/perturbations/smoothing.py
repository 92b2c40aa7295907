"""Rows that look around λ at random: Gaussian smoothing, and a penalty on the trace of the Gauss-Newton matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bounds.scores import probabilities
from merging.learned.objectives import Objective
from merging.learned.perturbations.passes import Descent, Displacement, Step
from merging.learned.perturbations.sharpness import displaced


def random_coefficients(step: Step) -> Descent:
    """One pass at λ + ρ z, z standard normal: an unbiased gradient of the smoothed loss E_z L(λ + ρ z)."""
    rows = [_normal(generator, row) for generator, row in zip(step.generators, step.coefficients, strict=True)]
    return _at(step, displaced(step.rho * torch.stack(rows)))


def random_weights(step: Step) -> Descent:
    """One pass at θ_λ + noise of a Gaussian posterior, one σ per block: σ_b = ρ · root mean square of θ_0's block b.

    Relative to θ_0, never to a task vector, as the grids of docs/theory.md, section 0, demand of a posterior's σ. An
    unbiased gradient of E_z L(θ_λ + σ z), the first term of a bound with that posterior.
    """
    noise = {}
    for names in step.blocks.values():
        squares = sum(float(torch.linalg.vector_norm(step.base[n], dtype=torch.float64)) ** 2 for n in names)
        sigma = step.rho * math.sqrt(squares / sum(step.base[n].numel() for n in names))
        noise |= {name: sigma * _normal(step.generator, step.base[name]) for name in names}
    norm = math.sqrt(sum(float(value.square().sum(dtype=torch.float64)) for value in noise.values()))
    return _at(step, Displacement(weights=noise, norm=norm))


def gauss_newton_trace(step: Step) -> Descent:
    """Gradient of L + c · tr G(λ), G the Gauss-Newton matrix in λ of the KL at the model's own distribution. 4 passes.

    G(λ) = mean over tasks and examples of Jᵀ H J, J = ∂scores/∂λ [C, TL], H = (diag p - p pᵀ)/u² at temperature u:
    the Hessian in λ' of KL(p_λ ‖ p_λ') at λ' = λ, whatever the objective is (2). Hutchinson's estimator: with signs z,
    E zᵀGz = tr G. With h = ρ z/√(TL) and D = (s(λ + h) - s(λ - h))/2, zᵀGz = (TL/ρ²) mean Var_p(D/u), p at the scores'
    midpoint, up to O(ρ²) (exact where scores are linear in λ). Its gradient is that of the same expression, through
    both ends. Status: estimated (one z per step, row t from task t's generator).
    """
    here = step.at()
    blocks = step.coefficients.shape[1:]
    signs = torch.stack([torch.randint(0, 2, blocks, generator=generator) for generator in step.generators]) * 2 - 1
    shift = displaced(signs.to(step.coefficients) * (step.rho / math.sqrt(signs.numel())))
    assert shift.coefficients is not None
    back = Displacement(coefficients=-shift.coefficients, norm=shift.norm)
    low: list[Tensor] = []
    high: list[Tensor] = []
    step.at(back, _recording(low, None))
    up = step.at(shift, _recording(high, iter(low))).coefficients
    down = step.at(back, _recording([], iter(high))).coefficients
    gradient = here.coefficients + step.penalty * signs.numel() / step.rho**2 * (up + down)
    return Descent(gradient, here.losses, shift.norm)


def half_difference_variance(scores: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Mean over examples of Var_p(D/u), D = (scores - other)/2 [N, C], p = softmax of their midpoint/u. Symmetric."""
    p = probabilities(scores + other, 2 * temperature)
    d = (scores - other) / (2 * temperature)
    return ((p * d.square()).sum(dim=-1) - (p * d).sum(dim=-1).square()).mean()


def _recording(record: list[Tensor], others: Iterator[Tensor] | None) -> Objective:
    """Objective that notes the scores it is called with, and compares them with the next of ``others`` if there are."""

    def objective(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        record.append(student.detach())
        return 0 * student.sum() if others is None else half_difference_variance(student, next(others), temperature)

    return objective


def _at(step: Step, displacement: Displacement) -> Descent:
    there = step.at(displacement)
    return Descent(there.coefficients, there.losses, displacement.norm)


def _normal(generator: torch.Generator, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(like.shape, generator=generator, dtype=dtype).to(like.device)
