"""The arithmetic of a merge on parts of a tensor: add weighted rows, and the inner products of rows.

Rows are task vectors, read once from memory or from a mapped file. The parts do not depend on the number of threads, so
neither does the result. Half precision and rows on another device are converted part by part, in a buffer that stays in
the cache. Every call into PyTorch hands Python's lock to another thread, which costs more than small work: parts are
therefore cut beforehand, whole tensors at a time, and a part takes one or two calls.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

PART = 2**17
"""Numbers of a parameter in one part."""

Part = TypeVar("Part")
Result = TypeVar("Result")


def run(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Do the work on every part, on PyTorch's number of threads (one where parts are few); results in order."""
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 8 * threads:
        return [work(part) for part in parts]
    return list(_pool(threads, os.getpid()).map(work, parts))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that take parts of their own: a matrix-vector product does not use PyTorch's threads by itself.

    They are started once per process: setting a number of threads empties oneDNN's cache of kernels.
    """
    pool = ThreadPoolExecutor(threads)
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        started.wait()  # every thread takes one call
        torch.set_num_threads(1)

    list(pool.map(start, range(threads)))
    torch.set_num_threads(threads)
    return pool


def rows(stacked: Tensor) -> Tensor:
    """View stacked deltas [T, ...] as a matrix [T, N]."""
    return stacked.reshape(len(stacked), -1)


def add_rows(base: Tensor, columns: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Return base + Σ_t weights_t columns_·t, in the weights' precision and on their device.

    Args:
        base: [N].
        columns: rows of task vectors, transposed: [N, T].
        weights: [T].
        out: where the result is written; without it the result is differentiable in the weights.
    """
    if base.dtype != weights.dtype or base.device != weights.device:
        base = base.to(weights.device, weights.dtype)
    wide = _convert(columns.T, weights, scratch=out is not None).T if _differ(columns, weights) else columns
    return torch.addmv(base, wide, weights, out=out)


def dot_rows(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return Σ_n matrix_tn vector_n, [T], in at least float32 and on the vector's device."""
    if vector.dtype in (torch.float16, torch.bfloat16):
        vector = vector.float()
    wide = _convert(matrix, vector, scratch=not vector.requires_grad) if _differ(matrix, vector) else matrix
    return wide @ vector


class _Buffer(threading.local):
    """One buffer per thread: fresh memory for every part would cost more than the arithmetic."""

    memory: Tensor = torch.empty(0)
    tensor: Tensor = torch.empty(0)


_buffer = _Buffer()


def _differ(left: Tensor, right: Tensor) -> bool:
    return left.dtype != right.dtype or left.device != right.device


def _convert(matrix: Tensor, like: Tensor, *, scratch: bool) -> Tensor:
    """Return ``matrix`` in the precision and on the device of ``like``; ``scratch``: until the thread's next call."""
    if not scratch or matrix.device != like.device:
        return matrix.to(like.device, like.dtype)
    if _buffer.tensor.dtype != like.dtype or _buffer.tensor.shape != matrix.shape:
        if _buffer.memory.dtype != like.dtype or _buffer.memory.numel() < matrix.numel():
            _buffer.memory = torch.empty(matrix.numel(), dtype=like.dtype)
        _buffer.tensor = _buffer.memory[: matrix.numel()].view(matrix.shape)
    return _buffer.tensor.copy_(matrix)
