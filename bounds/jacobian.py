"""Jacobian products: directional derivatives, per-example cotangent rows, kernel-vector products.

The building blocks of the modules on linearisation, the neural tangent kernel and flatness. J(x) = ∂f/∂θ
[C, P] is never formed as a whole; callers enter :func:`bounds.autodiff.differentiable` and check their
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bounds.autodiff import batches, jvp, parameter_bytes, vmap_or_loop
from bounds.types import Forward, Inputs, Params, leaves, refuse, take

BATCH_SIZE = 32
"""Default number of examples differentiated together where one derivative serves the whole batch."""

Rows = Callable[[Tensor], dict[str, Tensor]]
"""cotangents [n, r, C] -> name -> the rows u^T J(x) of every example, [n, r, *shape of the parameter]."""

Sink = Callable[[str, Tensor], None]
"""Takes a parameter's name and the rows u^T J(x) of one example in it, [r, *shape of the parameter]."""


def centre(scores: Tensor) -> Tensor:
    """Project the last axis onto the complement of the all-ones vector: Π s with Π = I - 11^T/C."""
    return scores - scores.mean(-1, keepdim=True)


def score_basis(classes: int, centred: bool, like: Tensor) -> Tensor:
    """Return orthonormal columns: the scores [C, C] or, centred, the complement of 1 [C, C - 1] (Helmert).

    Raises:
        InputError: centred with a single score, whose centred kernel is identically 0.
    """
    identity = torch.eye(classes, dtype=like.dtype, device=like.device)
    if not centred:
        return identity
    if classes < 2:
        refuse("scores", expected="at least 2 for the centred kernel", got=classes, cure="pass centred=False")
    columns = torch.zeros(classes, classes - 1, dtype=torch.float64, device=like.device)
    for k in range(1, classes):
        columns[:k, k - 1] = 1.0
        columns[k, k - 1] = -float(k)
        columns[:, k - 1] /= math.sqrt(k * (k + 1))
    return columns.to(like.dtype)


def basis_of_scores(forward: Forward, params: Params, inputs: Inputs, centred: bool) -> Tensor:
    """Return :func:`score_basis` for a network's scores, whose number a forward pass of the first example tells."""
    return score_basis(class_count(forward, params, inputs), centred, next(iter(params.values())))


def directional(forward: Forward, params: Params, inputs: Inputs, direction: Params) -> tuple[Tensor, Tensor]:
    """Return scores [N, C] and J(x) d [N, C] along ``direction`` (missing names mean 0), by one JVP."""
    moving = {name: params[name] for name in direction}
    if not moving:
        scores = forward(params, inputs)
        return scores, torch.zeros_like(scores)
    return jvp(lambda p: forward({**params, **p}, inputs), moving, direction)


def row_function(
    forward: Forward, params: Params, names: Sequence[str], inputs: Inputs, *, vectorize: bool = False
) -> Rows:
    """Return the function from cotangents to rows of the examples' Jacobians in the named parameters.

    The backward pass is vmapped over the cotangents of an example. Without ``vectorize`` there must be one
    example, whose forward pass is run once, plainly; with it, forward and backward are vmapped over the
    examples.
    """
    moving = {name: params[name] for name in names}

    def pull(example: Inputs, cotangents: Tensor) -> dict[str, Tensor]:
        return torch.vmap(vjp_of(example))(cotangents.unsqueeze(1))[0]

    def vjp_of(example: Inputs) -> Callable[[Tensor], tuple[dict[str, Tensor]]]:
        return torch.func.vjp(lambda p: forward({**params, **p}, example), moving)[1]

    if vectorize:
        alone = _map(inputs, lambda tensor: tensor.unsqueeze(1))
        return lambda cotangents: vmap_or_loop(pull, alone, cotangents)
    vjp = vjp_of(inputs)

    def rows(cotangents: Tensor) -> dict[str, Tensor]:
        (gradients,) = torch.vmap(vjp)(cotangents.transpose(0, 1))
        return {name: gradient.unsqueeze(0) for name, gradient in gradients.items()}

    return rows


class _Drain(torch.autograd.Function):
    """Hands a vmapped gradient [r, ...] to ``sink``; what is left of it are zeros without memory."""

    @staticmethod
    def forward(gradient: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
        sink(gradient.unsqueeze(0))
        return gradient.new_zeros(()).expand_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: no second derivative is taken."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, sink: Callable[[Tensor], None]
    ) -> tuple[Tensor, int]:
        place = in_dims[0]
        alike = place is None  # for all cotangents
        rows = gradient.expand(info.batch_size, *gradient.shape) if alike else gradient.movedim(place, 0)
        with torch.no_grad():  # a backward pass is differentiable: its graph would keep what is made of the rows
            sink(rows.detach())
        return rows.detach().new_zeros(()).expand_as(rows), 0


def row_stream(
    forward: Forward, params: Params, names: Sequence[str], example: Inputs, sink: Sink, *, together: bool
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Return the scores [1, C] of one example, and what hands the rows of its Jacobian to ``sink``.

    The function takes cotangents [r, C] and goes back through the network once. ``together``: the rows of all
    parameters are made and then handed on. Otherwise those of a parameter are handed on as soon as they are there and
    freed, so that few are in memory: rows of all would be r networks. (This costs a millisecond a parameter, much for a
    small network.) A parameter that the scores do not depend on may not be handed on.
    """
    moving = {name: params[name] for name in names}

    def watched(p: Params) -> Tensor:
        if not together:
            for name, value in p.items():  # a leaf: its hook runs before anything else that is ready
                value.register_hook(partial(_drained, partial(sink, name)))
        return forward({**params, **p}, example)

    scores, vjp, *_ = torch.func.vjp(watched, moving)
    pull = torch.vmap(vjp)

    def stream(cotangents: Tensor) -> None:
        (rows,) = pull(cotangents.unsqueeze(1))
        if together:
            for name in names:
                sink(name, rows[name])

    return scores, stream


def _drained(sink: Callable[[Tensor], None], gradient: Tensor) -> Tensor:
    return _Drain.apply(gradient, sink)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def spans(total: int, size: int) -> Iterator[slice]:
    """Yield the slices of at most ``size`` that cover ``range(total)``.

    Raises:
        InputError: ``size`` < 1.
    """
    if size < 1:
        refuse("batch size", expected="at least 1", got=size, cure="pass a positive batch size")
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def example_spans(inputs: Inputs, n: int, size: int) -> Iterator[tuple[slice, Inputs]]:
    """Yield (slice, examples) for consecutive groups of at most ``size`` examples."""
    for span in spans(n, size):
        yield span, take(inputs, span)


def score_all(forward: Forward, params: Params, inputs: Inputs, batch_size: int = BATCH_SIZE) -> Tensor:
    """Scores [N, C], computed batch by batch."""
    return torch.cat([forward(params, batch) for batch in batches(inputs, batch_size)])


def pull_back(
    forward: Forward, params: Params, inputs: Inputs, cotangents: Tensor, batch_size: int = BATCH_SIZE
) -> dict[str, Tensor]:
    """Return Σ_i J(x_i)^T u_i for cotangents u [N, C], in the parameters' dtype: one VJP per batch."""
    total: dict[str, Tensor] = {}
    start = 0
    for batch in batches(inputs, batch_size):
        size = len(leaves(batch)[0])
        vjp = torch.func.vjp(lambda p, batch=batch: forward(p, batch), dict(params))[1]
        (gradient,) = vjp(cotangents[start : start + size])
        start += size
        if not total:
            total = dict(gradient)
        else:
            for name, value in gradient.items():
                total[name] += value
    return total


def push_forward(
    forward: Forward, params: Params, inputs: Inputs, direction: Params, batch_size: int = BATCH_SIZE
) -> Tensor:
    """J(x_i) d for every example [N, C]: one JVP per batch."""
    return torch.cat([directional(forward, params, x, direction)[1] for x in batches(inputs, batch_size)])


def kernel_product(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    vector: Tensor,
    *,
    centred: bool,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Return K v [N, C] for the kernel matrix of all the examples, by one VJP and one JVP per batch."""
    project = centre if centred else _identity
    gradient = pull_back(forward, params, inputs, project(vector), batch_size)
    return project(push_forward(forward, params, inputs, gradient, batch_size))


def _identity(scores: Tensor) -> Tensor:
    return scores


def squared_norms(rows: Mapping[str, Tensor], blocks: Mapping[str, Sequence[str]]) -> Tensor:
    """Squared norm of every row within every block: [n, r, B], float64.

    Norms are taken in the rows' dtype over one output unit at a time and added in float64: a single float32
    norm over millions of entries would be wrong in the fourth digit.
    """
    per_block = []
    for names in blocks.values():
        parts = [_units(rows[name]).double().square().sum(-1) for name in names]
        per_block.append(torch.stack(parts).sum(0))
    return torch.stack(per_block, dim=-1)


def norm_stream(
    forward: Forward,
    params: Params,
    example: Inputs,
    blocks: Mapping[str, Sequence[str]],
    *,
    together: bool,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the scores [1, C] of one example, and the function from cotangents [r, C] to squared norms [r, B].

    They are the rows' norms as :func:`squared_norms` has them; see :func:`row_stream`.
    """
    found: dict[str, Tensor] = {}

    def add(name: str, rows: Tensor) -> None:
        found[name] = squared_norms({name: rows.unsqueeze(0)}, {name: [name]})[0, :, 0]

    scores, stream = row_stream(forward, params, list(params), example, add, together=together)

    def squares(cotangents: Tensor) -> Tensor:
        found.clear()
        stream(cotangents)
        nothing = torch.zeros(len(cotangents), dtype=torch.float64, device=cotangents.device)
        per_block = [sum((found[name] for name in names if name in found), nothing) for names in blocks.values()]
        return torch.stack(per_block, dim=-1)

    return scores, squares


def _units(rows: Tensor) -> Tensor:
    """Norms [n, r, units] of rows [n, r, *shape] over all axes of the parameter but its first."""
    if rows.ndim <= 3:
        return torch.linalg.vector_norm(rows.flatten(2), dim=2, keepdim=True)
    return torch.linalg.vector_norm(rows.flatten(3), dim=3)


INNER_SPLIT = 65536
"""Entries contracted by one float32 matrix product; longer contractions lose digits (and are slower)."""


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """Return Σ_p first[..., i, p] second[..., j, p] as [..., i, j], float64, in pieces of the last axis."""
    shape = (*first.shape[:-1], second.shape[-2])
    total = torch.zeros(shape, dtype=torch.float64, device=first.device)
    for left, right in zip(first.split(INNER_SPLIT, -1), second.split(INNER_SPLIT, -1), strict=True):
        total += left @ right.mT
    return total


def parameter_groups(params: Params, capacity_bytes: int) -> list[list[str]]:
    """Pack consecutive parameters into groups within ``capacity_bytes``; a larger tensor stands alone."""
    groups: list[list[str]] = []
    used = 0
    for name in params:
        size = parameter_bytes(params, [name])
        if not groups or used + size > capacity_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def class_count(forward: Forward, params: Params, inputs: Inputs) -> int:
    """Return the number of scores C, from a forward pass of the first example."""
    return forward(params, take(inputs, slice(0, 1))).shape[1]
