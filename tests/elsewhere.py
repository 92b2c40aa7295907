"""A second device without the hardware: tensors that compute on the CPU but refuse to be mixed with the CPU's.

``with elsewhere(): ...`` makes PyTorch's device ``meta`` hold real numbers. As on a GPU, an operation on tensors of
both devices raises, so that a tensor created without ``device=`` where it is needed is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
aten: Any = torch.ops.aten
MAY_MIX = {aten.copy_.default, aten._to_copy.default}
TAKES_INDICES_FROM_THE_CPU = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""As on a GPU: what is indexed lies there, the indices may lie here."""


class Elsewhere(torch.Tensor):
    """A tensor on the device: says that it is there, and keeps its numbers in ``inner`` on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME),
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def tolist(self):
        """As for any tensor of a GPU."""
        return self.inner.tolist()


class Mode(TorchDispatchMode):
    """Sees the operations that have no tensor on the device yet, such as ``torch.zeros(..., device=...)``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere) and leaf.ndim]
    indexed = func in TAKES_INDICES_FROM_THE_CPU and isinstance(args[0], Elsewhere)
    if there and here and func not in MAY_MIX and not indexed:
        raise RuntimeError(f"{func}: tensors on two devices, {[tuple(t.shape) for t in here]} on the CPU")
    device = kwargs.get("device")
    to_device = bool(there) if device is None else torch.device(device).type == NAME
    inner_args, inner_kwargs = tree_map(lambda v: v.inner if isinstance(v, Elsewhere) else v, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    if func is aten._efficientzerotensor.default:  # forward mode's zeros without memory, which have no numbers to keep
        func = aten.zeros.default
    result = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and there and isinstance(result, torch.Tensor):
        return next(t for t in there if t.inner is result) if any(t.inner is result for t in there) else result
    if not to_device:
        return result
    return tree_map(lambda v: Elsewhere(v) if isinstance(v, torch.Tensor) else v, result)


@contextmanager
def elsewhere() -> Iterator[str]:
    """Make the device usable; yields its name."""
    with Mode():
        yield NAME
