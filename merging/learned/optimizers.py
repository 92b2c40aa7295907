"""Rows of the table of optimisers of λ, and of the averages of λ over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SGD_MOMENTUM = 0.9
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


OPTIMIZERS: Mapping[str, Make] = {"adam": adam, "adamw": adamw, "sgd": sgd}


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
