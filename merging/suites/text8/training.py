"""Experts of the suite: full fine-tuning of the layers, on the true labels or on permuted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.types import Forward, Params, Sample
from merging.draws import task_generators


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an expert is fine-tuned: AdamW without weight decay, linear warm-up and decay, no dropout."""

    rate: float = 2e-4
    """Peak learning rate."""
    epochs: int = 1
    """Passes over S_t."""
    batch: int = 32
    """Examples of a step."""
    warm_up: float = 0.1
    """Share of the steps over which the rate rises."""


def fine_tune(
    name: str, forward: Forward, base: Params, train: Sample, training: Training, seed: int
) -> tuple[dict[str, Tensor], list[float]]:
    """Return an expert's θ and the loss of every step (nats).

    Args:
        name: of the task; with the seed it says the order of the examples.
        forward: the task's scores.
        base: θ_0.
        train: S_t.
        training: rate and length.
        seed: of the order.
    """
    assert isinstance(train.inputs, Tensor)
    assert train.labels is not None
    (generator,) = task_generators([f"{name} batches"], seed)
    theta = {key: value.detach().clone().requires_grad_() for key, value in base.items()}
    steps = training.epochs * math.ceil(len(train) / training.batch)
    rising = max(1, round(training.warm_up * steps))
    optimizer = torch.optim.AdamW(list(theta.values()), lr=training.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    curve = []
    for _ in range(training.epochs):
        for index in torch.randperm(len(train), generator=generator).split(training.batch):
            loss = F.cross_entropy(forward(theta, train.inputs[index]), train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            curve.append(loss.item())
    return {key: value.detach() for key, value in theta.items()}, curve


def permuted(name: str, train: Sample, seed: int) -> Sample:
    """Return S_t with its labels permuted at random among the examples."""
    assert train.labels is not None
    (generator,) = task_generators([f"{name} permutation"], seed)
    return Sample(train.inputs, train.labels[torch.randperm(len(train), generator=generator)])
