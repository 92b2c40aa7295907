"""Rows of the Jacobian of the scores in the coefficients: ∂f_c(x; θ_λ)/∂λ_t^l = ⟨∇_θ f_c, τ_t⟩ on block l.

Two ways to the same numbers. Backwards: one VJP per example and cotangent, per example under ``vmap``, contracted with
all T task vectors at once, so that each task vector is read once per chunk. Forwards: one JVP per (task, block)
direction, for all examples together. Cost is counted in passes, one pass being a forward and a backward of one example
through the network: a VJP counts 1 per cotangent (the forward that the cotangents of an example share is not
discounted), a JVP counts ``JVP_PASSES`` per direction, a forward alone ``FORWARD_PASSES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bounds.autodiff import chunk_size, differentiable, jvp, memory_budget, parameter_bytes, vmap_or_loop
from bounds.types import Inputs, Params, take
from merging.learned import Problem

FORWARD_PASSES = 1 / 3
"""A forward alone, in passes: two of a layer's three matrix products belong to the backward."""
JVP_PASSES = 1.0
"""A JVP along one direction, in passes: a forward, and per layer one product for each of its two tangents."""
CHUNK = 16
"""Most rows pulled back at once: more do not run faster on a CPU."""

Cotangents = Callable[[Tensor, Tensor], Tensor]
"""(scores [..., C], targets [..., C]) -> cotangents [..., r, C], float64; runs under ``vmap``."""


class Rows(NamedTuple):
    """Scores [n, C], cotangents u [n, r, C] and rows u^T ∂f/∂λ [n, r, T·L] of n examples, all float64."""

    scores: Tensor
    cotangents: Tensor
    rows: Tensor


def centred_basis(classes: int) -> Tensor:
    """Return C - 1 orthonormal rows [C - 1, C], float64, that span the scores up to a constant per example."""
    rows = torch.zeros(classes - 1, classes, dtype=torch.float64)
    for k in range(1, classes):
        rows[k - 1, :k], rows[k - 1, k] = 1.0, -float(k)
        rows[k - 1] /= math.sqrt(k * (k + 1))
    return rows


def row_passes(problem: Problem, count: int) -> float:
    """Return the passes per example that the cheaper way takes for ``count`` cotangents."""
    return min(count, JVP_PASSES * len(problem.task_vectors) * len(problem.blocks))


def jacobian_rows(
    problem: Problem, theta: Params, task: int, index: Tensor, targets: Tensor, choose: Cotangents, count: int
) -> Rows:
    """Return rows of the examples' Jacobians in λ, by the way that costs fewer passes. Exact.

    Args:
        problem: task vectors, blocks, networks and inputs.
        theta: the merged weights θ_λ where the Jacobian is taken.
        task: whose network and examples.
        index: [n] examples of the task.
        targets: [n, C], handed to ``choose`` beside the scores.
        choose: the cotangents of an example, a function of its scores, so that both come from one forward.
        count: r, how many ``choose`` returns.

    Returns:
        Rows; the last axis of ``rows`` has the order of ``coefficients.flatten()``.
    """
    by = rows_by_vjp if count <= row_passes(problem, count) else rows_by_jvp
    return by(problem, theta, task, index, targets, choose, count)


def rows_by_vjp(
    problem: Problem, theta: Params, task: int, index: Tensor, targets: Tensor, choose: Cotangents, count: int
) -> Rows:
    """Rows by one VJP per example and cotangent. Exact; arguments as :func:`jacobian_rows`."""
    per_row = 3 * parameter_bytes(theta)  # a gradient, the copy that is contracted, activations
    together = min(CHUNK, chunk_size(per_row, memory_budget()))
    parts = []
    for chosen, target in zip(
        index.split(max(1, together // count)), targets.split(max(1, together // count)), strict=True
    ):
        inputs = _map(take(problem.inputs[task], chosen), lambda tensor: tensor.unsqueeze(1))
        pieces = [
            _pulled(problem, theta, task, inputs, target, choose, slice(start, start + together))
            for start in range(0, count, together)
        ]
        parts.append(
            Rows(pieces[0].scores, *(torch.cat([piece[field] for piece in pieces], dim=1) for field in (1, 2)))
        )
    return Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _pulled(
    problem: Problem, theta: Params, task: int, inputs: Inputs, targets: Tensor, choose: Cotangents, span: slice
) -> Rows:
    """Rows of a chunk of examples (each with a leading axis of its own) for the cotangents in ``span``."""

    def pull(example: Inputs, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        result = torch.func.vjp(lambda params: problem.forwards[task](params, example)[0], dict(theta))
        scores, vjp = result[0], result[1]
        cotangents = choose(scores.detach().double(), target)[span]
        return scores, cotangents, torch.vmap(vjp)(cotangents.to(scores.dtype))[0]

    with differentiable():
        scores, cotangents, gradients = vmap_or_loop(pull, inputs, targets)
    return Rows(scores.double(), cotangents, _contracted(problem, gradients))


def _contracted(problem: Problem, gradients: Params) -> Tensor:
    """Inner products of gradients [n, r, ...] with every task vector on every block: [n, r, T·L], float64."""
    tasks, columns = len(problem.task_vectors), []
    for names in problem.blocks.values():
        parts = []
        for name in names:
            deltas = problem.task_vectors.stacked[name].reshape(tasks, -1)
            parts.append((gradients[name].flatten(2).to(deltas.dtype) @ deltas.T).double())
        columns.append(torch.stack(parts).sum(0))
    return torch.stack(columns, dim=-1).flatten(2)


def rows_by_jvp(
    problem: Problem, theta: Params, task: int, index: Tensor, targets: Tensor, choose: Cotangents, count: int
) -> Rows:
    """Rows by one JVP per task and block. Exact; arguments as :func:`jacobian_rows`."""
    forward, inputs = problem.forwards[task], take(problem.inputs[task], index)
    tasks, columns = len(problem.task_vectors), []
    scores = torch.empty(0)
    for names in problem.blocks.values():
        moving = {name: theta[name] for name in names}
        stacked = {name: problem.task_vectors.stacked[name].to(theta[name].dtype) for name in names}
        block = []
        for t in range(tasks):
            direction = {name: stacked[name][t] for name in names}
            with differentiable():
                scores, along = jvp(lambda p: forward({**theta, **p}, inputs), moving, direction)
            block.append(along.double())
        columns.append(torch.stack(block, dim=-1))
    jacobian = torch.stack(columns, dim=-1).flatten(2)
    cotangents = choose(scores.double(), targets)
    return Rows(scores.double(), cotangents, cotangents @ jacobian)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}
