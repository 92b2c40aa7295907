"""Algebra on parameter dictionaries: differences, norms, inner products, partitions into blocks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch

from bounds.types import Blocks, Params, refuse

Granularity: TypeAlias = Literal["task", "block", "tensor"]
"""One coefficient per task, per task and transformer block, or per task and parameter tensor."""

_NUMBER = re.compile(r"(?:.*[_-])?\d+")
"""A component that is a number or ends in one after _ or -: ``3``, ``encoder_layer_3``, ``block1-0``."""

OUTSIDE = ("stem", "top")
"""Blocks of the tensors that belong to no module of their own: before the last block, and after it."""


def partition(params: Params, granularity: Granularity) -> Blocks:
    """Partition the parameters, in order of first appearance, into named blocks.

    ``task``: one block ``model``. ``tensor``: one per tensor. ``block``: by the module tree that the dotted names
    spell, for any network:

    1. One block per numbered module, the outermost on a tensor's path: ``resblocks.3``, ``h.3``, ``features.3``,
       ``encoder_layer_3``, and modules of one parent whose names are alike up to a number (``denseblock1`` and
       ``denseblock2``, ``inception4a`` and ``inception4b``). Where such a named one holds nothing but numbered
       modules, these are the blocks (``layer1.0``, ``layer1.1``).
    2. Without numbered modules: one block per outermost module, that is per child of the module that holds everything.
    3. Tensors outside these modules form the blocks ``stem`` (before the last block) and ``top`` (after it).

    A network that is one numbered module is divided in the same way within it, so that a network of several modules is
    never one block. One exception: two tensors without a numbered module stay together as ``top``.

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
    owners = _numbered(tuple(params)) or _children(tuple(params))
    last_owned = max((i for i, name in enumerate(params) if name in owners), default=-1)
    blocks: dict[str, list[str]] = {}
    for i, name in enumerate(params):
        blocks.setdefault(owners.get(name, OUTSIDE[i > last_owned]), []).append(name)
    return {block: tuple(names) for block, names in blocks.items()}


def _numbered(names: Sequence[str], above: int = 0) -> dict[str, str]:
    """Tensor -> the outermost numbered module it lies in, not counting the first ``above`` modules of its path.

    Where one such module holds the whole network and further modules, those within it are looked at.
    """
    children: dict[str, set[str]] = {}
    for name in names:
        *modules, _ = name.split(".")
        for depth, child in enumerate(modules):
            children.setdefault(".".join(modules[:depth]), set()).add(child)
    alike = {parent: Counter(map(_stem, found)) for parent, found in children.items()}

    def is_numbered(parent: str, child: str) -> bool:
        return _NUMBER.fullmatch(child) is not None or (_stem(child) != "" and alike[parent][_stem(child)] > 1)

    def is_row(parent: str, child: str) -> bool:
        """Whether the module is a mere row of numbered modules, as nn.Sequential in ``layer1.0``."""
        inner = children.get(f"{parent}.{child}".lstrip("."), set())
        return not child.isdigit() and bool(inner) and all(map(_NUMBER.fullmatch, inner))

    owners = {}
    for name in names:
        *modules, _ = name.split(".")
        for depth, child in enumerate(modules):
            parent = ".".join(modules[:depth])
            if depth >= above and is_numbered(parent, child) and not is_row(parent, child):
                owners[name] = ".".join(modules[: depth + 1])
                break
    found = set(owners.values())
    if len(found) == 1 and len(owners) == len(names) and len({name.rpartition(".")[0] for name in names}) > 1:
        return _numbered(names, found.pop().count(".") + 1)
    return owners


def _stem(child: str) -> str:
    """Return what stands before the first number: ``inception`` of ``inception4c``; empty without a number."""
    before, number, _ = re.match(r"(\D*)(\d*)(.*)", child).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return before if number else ""


def _children(names: Sequence[str]) -> dict[str, str]:
    """Tensor -> the child it lies in of the innermost module that holds all of them; empty for two tensors."""
    if len(names) < 3:
        return {}
    paths = [name.split(".")[:-1] for name in names]
    depth = 0
    while all(len(path) > depth and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return {name: ".".join(path[: depth + 1]) for name, path in zip(names, paths, strict=True) if len(path) > depth}


def check_partition(
    blocks: Blocks, params: Params, what: str = "blocks", cure: str = "use merging.params.partition"
) -> None:
    """Check that ``blocks`` names every parameter exactly once.

    Raises:
        InputError: a parameter is missing, repeated or unknown.
    """
    named = [name for names in blocks.values() for name in names]
    if sorted(named) != sorted(params):
        wrong = sorted(set(named) ^ set(params)) or sorted({n for n in named if named.count(n) > 1})
        refuse(what, expected="every parameter exactly once", got=wrong[:5], cure=cure)


_FACTOR = re.compile(
    r"(^|[._])(lora_(A|B|embedding_A|embedding_B|up|down|magnitude_vector)|(hada|lokr|lycoris|vera)_\w+)([._]|$)"
)


def check_no_factors(params: Params) -> None:
    """Check that parameters are whole weights: low-rank factors do not add up, (A + A')(B + B') is not AB + A'B'.

    Raises:
        InputError: names of factors (``lora_A``, ``lora_down``, ``hada_w1_a``, ...), or a pair NAME.up and NAME.down.
    """
    pairs = [name[:-3] for name in params if name.endswith(".up") and f"{name[:-3]}.down" in params]
    factors = [
        name for name in params if name.removesuffix(".up").removesuffix(".down") in pairs or _FACTOR.search(name)
    ]
    if factors:
        refuse(
            "parameters",
            expected="whole weights",
            got=f"{len(factors)} low-rank factors such as {factors[0]}",
            cure="multiply them out into the weights of each expert first (PEFT: merge_and_unload)",
        )


def finite(tensor: torch.Tensor) -> bool:
    """Whether every number is finite. Exact; one read in the usual case.

    A sum that is finite has finite summands; a sum that is not may only have overflowed, and then each is looked at.
    """
    tensor = tensor.detach()
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def subtract(left: Params, right: Params) -> dict[str, torch.Tensor]:
    """Return left - right, computed and stored in at least float32 (half precision would lose task vectors)."""
    return {name: widened(left[name]) - widened(right[name]) for name in left}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, exactly; everything else as it is."""
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
