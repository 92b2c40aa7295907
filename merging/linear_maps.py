"""The arithmetic of a merge on parts of a tensor: add weighted rows, and the inner products of rows.

Rows are task vectors, read once from memory or from a mapped file. The parts do not depend on the number of threads, so
neither does the result. Half precision and rows on another device are converted part by part, in a buffer that stays in
the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

PART = 2**18
"""Numbers of a parameter in one part."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Slice:
    """A part of a flattened parameter."""

    name: str
    range: slice


def slices(params: Mapping[str, Tensor]) -> list[Slice]:
    """Cut every parameter into parts of at most ``PART`` numbers, in order."""
    return [
        Slice(name, slice(start, min(start + PART, value.numel())))
        for name, value in params.items()
        for start in range(0, value.numel(), PART)
    ]


def run(work: Callable[[Slice], Result], parts: Sequence[Slice]) -> list[Result]:
    """Do the work on every part, on PyTorch's number of threads (one where parts are few); results in order."""
    threads = min(torch.get_num_threads(), len(parts) // 8)
    if threads <= 1:
        return [work(part) for part in parts]
    before = torch.get_num_threads()
    try:  # matrix-vector products do not use threads by themselves; here each thread takes parts of its own
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(before)


def add_rows(base: Tensor, rows: Tensor, weights: Tensor, part: slice, out: Tensor | None = None) -> Tensor:
    """Return base + Σ_t weights_t rows_t on a part, in the weights' precision and on their device.

    Args:
        base: [N].
        rows: [T, N].
        weights: [T].
        part: of the N numbers.
        out: where the result is written; without it the result is differentiable in the weights.
    """
    piece = _convert(rows[:, part], weights, scratch=out is not None)
    return torch.addmv(base[part].to(weights.device, weights.dtype), piece.T, weights, out=out)


def dot_rows(rows: Tensor, vector: Tensor, part: slice) -> Tensor:
    """Return Σ_n rows_tn vector_n over a part, [T], in at least float32 and on the vector's device."""
    wide = vector[part].to(torch.promote_types(vector.dtype, torch.float32))
    return _convert(rows[:, part], wide, scratch=not wide.requires_grad) @ wide


class _Buffer(threading.local):
    """One buffer per thread: fresh memory for every part would cost more than the arithmetic."""

    tensor: Tensor | None = None


_buffer = _Buffer()


def _convert(piece: Tensor, like: Tensor, *, scratch: bool) -> Tensor:
    """Return ``piece`` in the precision and on the device of ``like``; ``scratch``: until the next call."""
    if piece.dtype == like.dtype and piece.device == like.device:
        return piece
    if not scratch or piece.device != like.device:
        return piece.to(like.device, like.dtype)
    buffer = _buffer.tensor
    if buffer is None or buffer.dtype != like.dtype or buffer.numel() < piece.numel():
        buffer = _buffer.tensor = torch.empty(len(piece) * PART, dtype=like.dtype)
    return buffer[: piece.numel()].view(piece.shape).copy_(piece)
