"""Independent pieces of work on several processes: small networks gain nothing from threads inside an operation."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch

from bounds.autodiff import MEMORY_VARIABLE, memory_budget, without_jit_warning
from merging.rows import silent

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable of steps to show how far it is: (steps, description) -> the same steps."""
Item = TypeVar("Item")
Result = TypeVar("Result")
_call: Callable[[Any], Any] | None = None


def available() -> int:
    """Return how many processes are worth starting: the CPUs this one may use, or 1 where none can be forked."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def warm_up() -> None:
    """Let PyTorch import what its first derivatives need (900 modules, 2 s): before forking, not in every process."""
    one = torch.ones(1)
    with without_jit_warning():
        torch.func.jvp(torch.sin, (one,), (one,))
    torch.vmap(torch.func.vjp(torch.sin, one)[1])(one[None])


def each(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, track: Track = silent, what: str = ""
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order; with several workers, each is a forked process of one thread.

    What the function needs is inherited, not sent; its result travels as ``torch.save`` writes it, so it must be
    tensors and plain values. Results do not depend on the number of workers. The memory budget is shared out.

    Raises:
        Whatever ``function`` raises.
    """
    if min(workers, len(items)) <= 1:
        for item in track(items, what):
            yield function(item)
        return
    global _call
    _call = function
    memory = str(max(1, memory_budget() // workers))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            pool = multiprocessing.get_context("fork").Pool(min(workers, len(items)), _start, (memory,))
        with pool:
            results = pool.imap(_run, items)
            for _, result in zip(track(items, what), results, strict=True):
                yield torch.load(io.BytesIO(result), weights_only=False)
    finally:
        _call = None


def _start(memory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's: it ends the pool, in one line
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so the pool ends its workers; the parent's handler is not theirs
    torch.set_num_threads(1)
    os.environ[MEMORY_VARIABLE] = memory


def _run(item: Any) -> bytes:
    assert _call is not None
    buffer = io.BytesIO()
    torch.save(_call(item), buffer)
    return buffer.getvalue()
