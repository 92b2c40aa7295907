"""The mean loss of a network on a labelled sample, and its gradient, accumulated over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from bounds.autodiff import check_inputs, check_params
from bounds.jacobian import spans
from bounds.types import Forward, Params, Sample, refuse
from bounds.validation import check_labels

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(scores [N, C], labels [N]) -> losses [N]; the loss of an example depends on its own scores only."""


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(scores)[label] in nats, [N]: no reduction."""
    return F.cross_entropy(scores, labels, reduction="none")


def labels_of(sample: Sample, scores: Tensor) -> Tensor:
    """Return the labels of a sample, checked against the scores [n, C] of its first n examples.

    Raises:
        InputError: no labels, no examples, or labels outside 0..C-1.
    """
    n = check_inputs(sample.inputs)
    if sample.labels is None:
        refuse("sample", expected="labels", got="an unlabelled sample", cure="pass a labelled split")
    return check_labels(sample.labels, n, scores.shape[1]).to(scores.device)


def prepare(forward: Forward, params: Params, sample: Sample) -> Tensor:
    """Check parameters and sample, and return the labels [N].

    Raises:
        InputError: bad parameters, no examples, no labels, or labels outside 0..C-1.
    """
    check_params(params)
    check_inputs(sample.inputs)
    return labels_of(sample, forward(params, sample.take(slice(0, 1)).inputs))


def pointwise(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """Return the losses [N].

    Raises:
        InputError: the loss reduces, or returns another shape.
    """
    losses = loss(scores, labels)
    if losses.shape != labels.shape:
        refuse(
            "loss",
            expected=f"{list(labels.shape)}",
            got=f"{list(losses.shape)}",
            cure="do not reduce over examples",
        )
    return losses


def mean_loss(forward: Forward, params: Params, sample: Sample, labels: Tensor, loss: Loss, batch_size: int) -> float:
    """Return the mean loss over the sample, accumulated in float64."""
    total = 0.0
    for span in spans(len(sample), batch_size):
        scores = forward(params, sample.take(span).inputs)
        total += float(pointwise(loss, scores, labels[span]).double().sum())
    return total / len(sample)


def loss_and_gradient(
    forward: Forward, params: Params, sample: Sample, labels: Tensor, loss: Loss, batch_size: int
) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss over the sample and its gradient, by one backward pass per batch."""
    n, total = len(sample), 0.0
    gradient: dict[str, Tensor] = {}
    for span in spans(n, batch_size):
        batch = sample.take(span).inputs

        def objective(p: Params, batch=batch, span: slice = span) -> Tensor:
            return pointwise(loss, forward(p, batch), labels[span]).sum() / n

        part, value = torch.func.grad_and_value(objective)(dict(params))
        total += float(value)
        for name, entry in part.items():
            gradient[name] = entry if name not in gradient else gradient[name].add_(entry)
    return total, gradient
