"""Rows of the tables of optimisers of λ, schedules of its rate, averages of λ; Adam for what is learned beside λ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SGD_MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's constants."""
Make = Callable[[Tensor, float, float], torch.optim.Optimizer]
"""(λ, learning rate, weight decay) -> optimiser."""


def adam(coefficients: Tensor, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam (arXiv 1412.6980); weight decay is an L2 term in the gradient."""
    return torch.optim.Adam([coefficients], lr=learning_rate, weight_decay=weight_decay)


def adamw(coefficients: Tensor, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101): Adam with decoupled weight decay."""
    return torch.optim.AdamW([coefficients], lr=learning_rate, weight_decay=weight_decay)


def sgd(coefficients: Tensor, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Gradient descent with momentum 0.9; weight decay is an L2 term in the gradient."""
    return torch.optim.SGD([coefficients], lr=learning_rate, momentum=SGD_MOMENTUM, weight_decay=weight_decay)


class FrankWolfe(torch.optim.Optimizer):
    """Frank-Wolfe steps of λ [T, L]: always towards an expert, or back to the start.

    The k-th step (from 0) goes the share γ = min(1, 2·rate/(k + 2)) of the way to the corner with the least inner
    product with the gradient, column by column: λ_·l ← (1 - γ) λ_·l + γ s_l. Corners are the experts (one coefficient
    is 1, the others 0) and the first λ, so that every iterate is in their convex hull; of equal corners the mean is
    taken, which does not depend on their order. Source: FW-Merging, arXiv 2503.12649, whose minimisation over models is
    this one since ⟨∇_θ, θ_t⟩ = ⟨∇_θ, θ_0⟩ + ∇_λ_t.
    """

    def __init__(self, coefficients: Tensor, rate: float, weight_decay: float) -> None:
        super().__init__([coefficients], {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step along ``grad``."""
        (group,) = self.param_groups
        (coefficients,) = group["params"]
        state = self.state[coefficients]
        if not state:
            state.update(step=torch.zeros(()), start=coefficients.clone())
        gradient = coefficients.grad + group["weight_decay"] * coefficients
        corners = torch.cat([gradient, (gradient * state["start"]).sum(dim=0, keepdim=True)])
        least = (corners == corners.amin(dim=0)).to(corners.dtype)
        shares = least / least.sum(dim=0)
        corner = shares[:-1] + shares[-1] * state["start"]
        coefficients.lerp_(corner, min(1.0, 2 * group["lr"] / (float(state["step"]) + 2)))
        state["step"] += 1


OPTIMIZERS: Mapping[str, Make] = {"adam": adam, "adamw": adamw, "sgd": sgd, "frank-wolfe": FrankWolfe}


def constant(step: int, steps: int) -> float:
    """Return 1: the rate that was given, at every step."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """Return ½(1 + cos(π step/steps)): from 1 to nearly 0 (arXiv 1608.03983, without restarts)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


SCHEDULES: Mapping[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine}
"""Name -> (step, from 0; number of steps) -> share of the learning rate on λ."""


def adam_step(memory: dict[str, Tensor], key: str, gradient: Tensor, learning_rate: float) -> Tensor:
    """Return Adam's step (arXiv 1412.6980, algorithm 1) on what is learned beside λ; moments live in ``memory``."""
    zero = torch.zeros_like(gradient)
    count = memory.get(f"{key}:count", torch.zeros(())) + 1
    first = BETAS[0] * memory.get(f"{key}:first", zero) + (1 - BETAS[0]) * gradient
    second = BETAS[1] * memory.get(f"{key}:second", zero) + (1 - BETAS[1]) * gradient.square()
    memory.update({f"{key}:count": count, f"{key}:first": first, f"{key}:second": second})
    scale = (second / (1 - BETAS[1] ** float(count))).sqrt() + EPSILON
    return -learning_rate * first / (1 - BETAS[0] ** float(count)) / scale


def exponential(average: Tensor | None, coefficients: Tensor, count: int, decay: float) -> Tensor:
    """Exponential moving average of λ, started at the first λ: a ← d a + (1 - d) λ."""
    return coefficients if average is None else decay * average + (1 - decay) * coefficients


def uniform(average: Tensor | None, coefficients: Tensor, count: int, decay: float) -> Tensor:
    """Stochastic weight averaging (arXiv 1803.05407): the mean of the ``count`` λ so far."""
    return coefficients if average is None else average + (coefficients - average) / count


Average = Callable[[Tensor | None, Tensor, int, float], Tensor]
"""(average so far, λ after this step, how many λ with this one, decay) -> new average."""
AVERAGES: Mapping[str, tuple[Average, float]] = {"ema": (exponential, 0.0), "swa": (uniform, 0.5)}
"""Name -> (rule, share of the steps that is left out at the start); "none" keeps the last λ."""


def remember(name: str, memory: dict[str, Tensor], coefficients: Tensor, step: int, steps: int, decay: float) -> None:
    """Take λ after ``step`` (1-based) of ``steps`` into the average that is kept in ``memory``.

    ``none`` keeps nothing; ``swa`` averages the second half of the steps (all of a single one). An average starts anew
    at the first step of its window, also when a run is resumed with another number of steps.
    """
    if name == "none":
        return
    rule, start = AVERAGES[name]
    first = int(start * steps) + 1
    if step < first:
        return
    if step == first:
        memory.pop("average", None)
        memory.pop("averaged", None)
    count = memory.get("averaged", torch.tensor(0)) + 1
    memory["average"] = rule(memory.get("average"), coefficients.detach().clone(), int(count), decay)
    memory["averaged"] = count
