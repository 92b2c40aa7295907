"""Flatness: per-example gradient norms (the Poincaré term), the norm of the mean gradient, sharpness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.autodiff import (
    check_blocks,
    check_inputs,
    check_params,
    chunk_size,
    differentiable,
    memory_budget,
    parameter_bytes,
)
from bounds.flatness.loss import Loss, labels_of, loss_and_gradient, pointwise, prepare
from bounds.jacobian import (
    BATCH_SIZE,
    example_spans,
    norm_stream,
    row_function,
    score_all,
    spans,
    squared_norms,
)
from bounds.scores import cross_entropy
from bounds.types import Blocks, Forward, Params, Sample, refuse
from bounds.validation import check_labels

LEAST_TOGETHER = 8
"""Examples that must fit into the memory together for vmapping over them to be worth it."""


def gradient_second_moment(
    forward: Forward,
    params: Params,
    sample: Sample,
    *,
    loss: Loss = cross_entropy,
    blocks: Blocks | None = None,
    budget_bytes: int | None = None,
    vectorize: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Squared gradient norms g_b = ‖∇_b ℓ(f_θ(x_i), y_i)‖² of every example and parameter block.

    The flatness term of one example is ⟨∇ℓ, Σ∇ℓ⟩ = Σ_b σ_b² g_b. One backward pass per example.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        sample: N labelled examples.
        loss: (scores, labels) -> losses [N] (default: cross-entropy).
        blocks: a partition of the parameters into B blocks (default: one block, ``"model"``).
        budget_bytes: memory for per-example gradients with ``vectorize``.
        vectorize: vmap over examples, several at a time: about 5 times faster for small models, but
            ``forward`` must then support vmap. Large models, of which the budget holds few, go one by one all the same.
        batch_size: examples per plain forward pass (for ∂ℓ/∂s) with ``vectorize``.

    Returns:
        [N, B], float64; no reduction over examples.

    Raises:
        InputError: bad parameters, sample, labels, blocks, loss or budget.

    Source: docs/theory.md (2) and (4). Status: exact per example; its mean over a sample is estimated.
    """
    partition = check_blocks(params, blocks)
    together = chunk_size(parameter_bytes(params), memory_budget(budget_bytes))
    with torch.no_grad(), differentiable():
        if not vectorize or together < LEAST_TOGETHER:
            return _one_by_one(forward, params, sample, loss, partition, together=together >= LEAST_TOGETHER)
        labels = prepare(forward, params, sample)
        scores = score_all(forward, params, sample.inputs, batch_size)
        slopes = _score_gradients(loss, scores, labels)
        norms = []
        for span, examples in example_spans(sample.inputs, len(sample), together):
            rows = row_function(forward, params, list(params), examples, vectorize=True)
            norms.append(squared_norms(rows(slopes[span].unsqueeze(1)), partition).squeeze(1))
    return torch.cat(norms)


def _one_by_one(
    forward: Forward,
    params: Params,
    sample: Sample,
    loss: Loss,
    partition: Mapping[str, Sequence[str]],
    *,
    together: bool,
) -> Tensor:
    """Return the squared gradient norms [N, B]: one forward and one backward pass per example, no gradient is kept."""
    check_params(params)
    check_inputs(sample.inputs)
    norms = []
    for span in spans(len(sample), 1):
        one = sample.take(span)
        scores, squares = norm_stream(forward, params, one.inputs, partition, together=together)
        norms.append(squares(_score_gradients(loss, scores, labels_of(one, scores))))
    return torch.cat(norms)


def kernel_second_moment(kernels: Tensor, scores: Tensor, labels: Tensor, *, loss: Loss = cross_entropy) -> Tensor:
    """Squared gradient norms from kernel blocks: v^T K_b v with v = ∂ℓ/∂s.

    With centred kernels the loss must not see the all-ones direction (cross-entropy does not).

    Args:
        kernels: K_b(x, x) [N, B, C, C], as from :func:`bounds.ntk.example_blocks`.
        scores: f_θ(x) [N, C] at the same parameters.
        labels: [N].
        loss: (scores, labels) -> losses [N].

    Returns:
        [N, B], float64; no reduction over examples.

    Raises:
        InputError: shapes do not match, or labels outside 0..C-1.

    Source: docs/theory.md (2). Status: exact per example.
    """
    n, classes = scores.shape
    if kernels.ndim != 4 or (kernels.shape[0], *kernels.shape[2:]) != (n, classes, classes):
        refuse(
            "kernel blocks",
            expected=f"[{n}, B, {classes}, {classes}]",
            got=list(kernels.shape),
            cure="pass kernels and scores of the same examples",
        )
    slopes = _score_gradients(loss, scores, check_labels(labels, n, classes).to(scores.device)).double()
    return torch.einsum("nc,nbcd,nd->nb", slopes, kernels.double(), slopes)


def _score_gradients(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    return torch.func.grad(lambda s: pointwise(loss, s, labels).sum())(scores)


@dataclass(frozen=True)
class GradientNorm:
    """‖∇L̂‖ as a whole (``total``) and per block, with the mean loss (``loss``)."""

    total: float
    blocks: Mapping[str, float]
    loss: float


def gradient_norm(
    forward: Forward,
    params: Params,
    sample: Sample,
    *,
    loss: Loss = cross_entropy,
    blocks: Blocks | None = None,
    batch_size: int = BATCH_SIZE,
) -> GradientNorm:
    """Norm ‖∇L̂(θ)‖ of the gradient of the mean loss, whole and per block: one backward pass per batch.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        sample: N labelled examples.
        loss: (scores, labels) -> losses [N] (default: cross-entropy).
        blocks: a partition of the parameters (default: one block, ``"model"``).
        batch_size: examples per backward pass.

    Returns:
        GradientNorm; total² = Σ_b blocks_b².

    Raises:
        InputError: bad parameters, sample, labels, blocks, loss or batch size.

    Source: docs/theory.md (5), consensus gap, and (6). Status: exact for the sample.
    """
    partition = check_blocks(params, blocks)
    with torch.no_grad(), differentiable():
        labels = prepare(forward, params, sample)
        value, gradient = loss_and_gradient(forward, params, sample, labels, loss, batch_size)
        rows = {name: entry[None, None] for name, entry in gradient.items()}
        squares = squared_norms(rows, partition).flatten()
    norms = {block: float(square) ** 0.5 for block, square in zip(partition, squares, strict=True)}
    return GradientNorm(float(squares.sum()) ** 0.5, norms, value)
