"""Sharpness: how much the mean loss grows within a radius, in weights or in merging coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from bounds.autodiff import check_blocks, check_displacement, differentiable
from bounds.flatness.loss import Loss, loss_and_gradient, mean_loss, prepare
from bounds.jacobian import BATCH_SIZE, inner_products, squared_norms
from bounds.scores import cross_entropy
from bounds.types import Blocks, Forward, Params, Sample, refuse
from bounds.validation import check_positive

Perturbation = Mapping[str, Tensor]
COEFFICIENTS = "coefficients"


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Increase of the mean loss under the perturbation that was found.

    ``increase`` = ``perturbed_loss`` - ``loss``; ``perturbation_norm`` is ρ, or 0 where the gradient is
    exactly 0 and no direction could be found (ascent: anywhere within ρ); ``gradient_norm`` is that at the
    unperturbed point.
    """

    increase: float
    loss: float
    perturbed_loss: float
    perturbation_norm: float
    gradient_norm: float


def sharpness(
    forward: Forward,
    params: Params,
    sample: Sample,
    rho: float,
    *,
    directions: Sequence[Params] | None = None,
    blocks: Blocks | None = None,
    method: Literal["sam", "ascent"] = "sam",
    steps: int = 10,
    loss: Loss = cross_entropy,
    batch_size: int = BATCH_SIZE,
    at: tuple[float, Params] | None = None,
) -> Sharpness:
    """Increase of the mean loss at radius ρ, in weights or in merging coefficients.

    ``sam`` takes the first-order step ε = ρ g/‖g‖ and reports the loss there, higher or not. ``ascent`` goes
    on from it: ε moves towards ρ g(ε)/‖g(ε)‖, halving its step when the loss does not grow, and the best
    point within the ball ‖ε‖ <= ρ is reported. Both are lower limits of max_{‖ε‖ <= ρ} L̂ - L̂(θ). In
    coefficients, the weights are θ + Σ_d Σ_b ε_{d,b} τ_{d,b}, merged anew at every evaluation.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ, the point whose sharpness is measured.
        sample: N labelled examples.
        rho: radius: Euclidean norm of ε, in weights or in coefficients [D, B].
        directions: the D task vectors of coefficient space (default: perturb the weights themselves).
        blocks: the partition that has a coefficient each (coefficient space; default: one block).
        method: ``sam`` or ``ascent``.
        steps: gradient evaluations of ``ascent``.
        loss: (scores, labels) -> losses [N] (default: cross-entropy).
        batch_size: examples per backward pass.
        at: mean loss and gradient at θ, where they are known (as ``loss_and_gradient`` gives them): no pass for them.

    Returns:
        Sharpness, in units of the loss.

    Raises:
        InputError: bad parameters, sample, labels, directions, blocks, ρ <= 0, method or steps.

    Source: Foret et al. 2021; docs/theory.md, section 9. Status: exact for the sample and the perturbation
    found.
    """
    check_positive(rho, "rho")
    if method not in ("sam", "ascent") or steps < 1:
        refuse(
            "method",
            expected="sam, or ascent with steps >= 1",
            got=f"{method!r}, {steps}",
            cure="use one of them",
        )
    space = _space(params, directions, blocks)
    with torch.no_grad(), differentiable():
        labels = prepare(forward, params, sample)

        def evaluate(perturbation: Mapping[str, Tensor] | None) -> tuple[float, dict[str, Tensor]]:
            moved = params if perturbation is None else space.move(perturbation)
            value, gradient = loss_and_gradient(forward, moved, sample, labels, loss, batch_size)
            return value, space.pull(gradient)

        def value_at(perturbation: Mapping[str, Tensor]) -> float:
            return mean_loss(forward, space.move(perturbation), sample, labels, loss, batch_size)

        start, gradient = evaluate(None) if at is None else (at[0], space.pull(at[1]))
        if method == "sam":
            return _first_order(start, gradient, rho, value_at)
        return _ascend(start, gradient, rho, steps, evaluate)


def _first_order(
    start: float, gradient: Perturbation, rho: float, value_at: Callable[[Perturbation], float]
) -> Sharpness:
    norm = _norm(gradient)
    if norm == 0.0:
        return Sharpness(increase=0.0, loss=start, perturbed_loss=start, perturbation_norm=0.0, gradient_norm=0.0)
    step = _towards(gradient, rho, norm)
    value = value_at(step)
    return Sharpness(
        increase=value - start, loss=start, perturbed_loss=value, perturbation_norm=_norm(step), gradient_norm=norm
    )


def _ascend(
    start: float,
    gradient: Perturbation,
    rho: float,
    steps: int,
    evaluate: Callable[[Perturbation], tuple[float, dict[str, Tensor]]],
) -> Sharpness:
    first_norm = norm = _norm(gradient)
    best, at, share = start, {name: torch.zeros_like(g) for name, g in gradient.items()}, 1.0
    for _ in range(steps):
        if norm == 0.0:
            break
        target = _towards(gradient, rho, norm)
        candidate = {name: (1 - share) * at[name] + share * target[name] for name in at}
        value, slope = evaluate(candidate)
        if value > best:
            best, at, gradient, norm = value, candidate, slope, _norm(slope)
        else:
            share /= 2
    return Sharpness(
        increase=best - start, loss=start, perturbed_loss=best, perturbation_norm=_norm(at), gradient_norm=first_norm
    )


def _norm(perturbation: Perturbation) -> float:
    rows = {name: value[None, None] for name, value in perturbation.items()}
    return float(squared_norms(rows, {"all": list(rows)})) ** 0.5


def _towards(gradient: Perturbation, rho: float, norm: float) -> dict[str, Tensor]:
    return {name: value * (rho / norm) for name, value in gradient.items()}


class _Space(Protocol):
    """Where the perturbation lives: how it moves the weights, and how a gradient is seen from there."""

    def move(self, perturbation: Perturbation) -> Params: ...

    def pull(self, gradient: Params) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class _Weights:
    params: Params

    def move(self, perturbation: Perturbation) -> Params:
        return {name: value + perturbation[name] for name, value in self.params.items()}

    def pull(self, gradient: Params) -> dict[str, Tensor]:
        return dict(gradient)


@dataclass(frozen=True)
class _Coefficients:
    params: Params
    directions: Sequence[Params]
    blocks: Mapping[str, Sequence[str]]

    def move(self, perturbation: Perturbation) -> Params:
        coefficients = perturbation[COEFFICIENTS]
        moved = dict(self.params)
        for block, names in enumerate(self.blocks.values()):
            for d, direction in enumerate(self.directions):
                for name in names:
                    if name in direction:
                        moved[name] = moved[name] + coefficients[d, block].to(moved[name].dtype) * direction[name]
        return moved

    def pull(self, gradient: Params) -> dict[str, Tensor]:
        return {COEFFICIENTS: coefficient_gradient(gradient, self.directions, self.blocks)}


def coefficient_gradient(gradient: Params, directions: Sequence[Params], blocks: Mapping[str, Sequence[str]]) -> Tensor:
    """Gradient in coefficients, ⟨τ_{d,b}, ∇_b⟩ [D, B], float64; names that a direction lacks count as 0."""
    table = torch.zeros(len(directions), len(blocks), dtype=torch.float64)
    for d, direction in enumerate(directions):
        for b, names in enumerate(blocks.values()):
            for name in names:
                if name in direction:
                    pair = direction[name].reshape(1, -1), gradient[name].reshape(1, -1)
                    table[d, b] += inner_products(*pair).item()
    return table


def _space(params: Params, directions: Sequence[Params] | None, blocks: Blocks | None) -> _Space:
    if directions is None:
        if blocks is not None:
            refuse(
                "blocks",
                expected="directions too",
                got="blocks alone",
                cure="blocks are for coefficient space",
            )
        return _Weights(params)
    if not directions:
        refuse("directions", expected="at least one", got="none", cure="pass task vectors, or None for weights")
    for index, direction in enumerate(directions):
        check_displacement(direction, params, what=f"direction {index}")
    return _Coefficients(params, directions, check_blocks(params, blocks))
