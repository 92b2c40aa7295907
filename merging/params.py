"""Algebra on parameter dictionaries: differences, norms, inner products, partitions into blocks."""

from __future__ import annotations

import math
import re
from typing import Literal, TypeAlias, get_args

import torch

from bounds.types import Blocks, Params, refuse

Granularity: TypeAlias = Literal["task", "block", "tensor"]
"""One coefficient per task, per task and transformer block, or per task and parameter tensor."""

_LAYER = re.compile(r"^(.*?(?:resblocks|layers?|blocks|h)\.\d+)\.")


def partition(params: Params, granularity: Granularity) -> Blocks:
    """Partition the parameters, in order, into named blocks.

    ``task``: one block ``model``. ``tensor``: one per tensor. ``block``: one per numbered layer (``resblocks.3``,
    ``layers.3``, ``h.3``, ...); consecutive tensors outside layers form the blocks ``stem`` (before the first layer)
    and ``top`` (after it).

    Raises:
        InputError: unknown granularity.
    """
    if granularity == "task":
        return {"model": tuple(params)}
    if granularity == "tensor":
        return {name: (name,) for name in params}
    if granularity != "block":
        refuse(
            "granularity",
            expected=" or ".join(get_args(Granularity)),
            got=repr(granularity),
            cure="choose one",
        )
    blocks: dict[str, list[str]] = {}
    last_layer = max((i for i, name in enumerate(params) if _LAYER.match(name)), default=-1)
    for i, name in enumerate(params):
        layer = _LAYER.match(name)
        block = layer.group(1) if layer else ("stem" if i < last_layer else "top")
        blocks.setdefault(block, []).append(name)
    return {block: tuple(names) for block, names in blocks.items()}


def check_partition(blocks: Blocks, params: Params) -> None:
    """Check that ``blocks`` names every parameter exactly once.

    Raises:
        InputError: a parameter is missing, repeated or unknown.
    """
    named = [name for names in blocks.values() for name in names]
    if sorted(named) != sorted(params):
        wrong = sorted(set(named) ^ set(params)) or sorted({n for n in named if named.count(n) > 1})
        refuse(
            "blocks",
            expected="every parameter exactly once",
            got=wrong[:5],
            cure="use merging.params.partition",
        )


def finite(tensor: torch.Tensor) -> bool:
    """Whether every number is finite. Exact; one read in the usual case.

    A sum that is finite has finite summands; a sum that is not may only have overflowed, and then each is looked at.
    """
    tensor = tensor.detach()
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def subtract(left: Params, right: Params) -> dict[str, torch.Tensor]:
    """Return left - right, computed and stored in at least float32 (half precision would lose task vectors)."""
    return {name: _full(left[name]) - _full(right[name]) for name in left}


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def combine(base: Params, direction: Params, scale: float) -> dict[str, torch.Tensor]:
    """Return base + scale · direction; names absent from ``direction`` are taken unchanged."""
    return {name: base[name] + scale * direction[name] if name in direction else base[name] for name in base}


def squared_norms(params: Params, blocks: Blocks) -> dict[str, float]:
    """Squared Euclidean norm of each block, accumulated in float64."""
    return {
        block: sum(float(torch.linalg.vector_norm(params[n], dtype=torch.float64)) ** 2 for n in names)
        for block, names in blocks.items()
    }


def norm(params: Params) -> float:
    """Euclidean norm of all parameters together, accumulated in float64."""
    return math.sqrt(sum(squared_norms(params, {"model": tuple(params)}).values()))
