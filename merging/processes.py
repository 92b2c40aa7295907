"""Several processes, started by torchrun: each takes some examples; gradients in λ and a few scalars travel."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from bounds.types import InputError, Params, refuse

Value = TypeVar("Value")


@dataclass
class Processes:
    """One process among ``size``, and what it sends. One process sends nothing.

    ``bytes_sent`` counts the numbers of a sum once, and of parts those that leave this process or pass through it.
    """

    rank: int = 0
    size: int = 1
    bytes_sent: int = 0
    on_this_machine: int = 1

    def mine(self, job: int) -> bool:
        """Whether a job of a list belongs to this process: every ``size``-th does."""
        return job % self.size == self.rank

    def share(self, task: int, tasks: int, count: int) -> slice:
        """Return which of a task's ``count`` examples belong to this process.

        The examples of all tasks stand in one row, task after task. The row is cut into ``size`` parts, of which no two
        differ by more than one example where the tasks have equally many: a task is divided among processes where it
        has to be, and nowhere else. A process whose part is empty waits for the others.
        """
        start, stop = (tasks * count * rank // self.size - task * count for rank in (self.rank, self.rank + 1))
        return slice(min(max(start, 0), count), min(max(stop, 0), count))

    def serves(self, task: int, tasks: int) -> bool:
        """Whether there is a number of examples of which :meth:`share` gives this process one of the task."""
        return task * self.size < (self.rank + 1) * tasks and self.rank * tasks < (task + 1) * self.size

    def total(self, compute: Callable[[], Tensor]) -> Tensor:
        """Sum over processes of what ``compute`` returns (same shape everywhere), added up in float64.

        Raises:
            InputError: in every process, when ``compute`` failed in one of them or one of them is gone.
        """
        if self.size == 1:
            return compute()
        value = self._with_others(compute)
        return self.reduce(value.double()).to(value.dtype)

    def in_turn(self, work: Callable[[], Value]) -> Value:
        """Let the first process work alone (it may write files), then the others; return each one's result."""
        results = []

        def own() -> Tensor:
            results.append(work())
            return torch.zeros(1)

        for leading in (True, False):
            self.total(own if (self.rank == 0) == leading else lambda: torch.zeros(1))
        return results[0]

    def sum_all(self, params: Params) -> Params:
        """Sum of a parameter dictionary over processes, each tensor when it is first asked for (by all of them)."""
        return params if self.size == 1 else _Sum(self, params)

    def gather_parts(self, compute: Callable[[], Tensor], whole: Tensor) -> None:
        """Fill ``whole`` [size·n], on the CPU, with what ``compute`` returns [n] in each process, in their order.

        Raises:
            InputError: as :meth:`total`.
        """
        part = self._with_others(compute)
        self._talk(lambda: torch.distributed.all_gather(list(whole.split(len(part))), part))
        self.bytes_sent += (self.size - 1) * part.nbytes

    def sum_parts(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return this process's part [n] of the sum over processes of what ``compute`` returns [size·n], on the CPU.

        Raises:
            InputError: as :meth:`total`.
        """
        whole = self._with_others(compute)
        parts = torch.empty_like(whole)
        self._talk(lambda: torch.distributed.all_to_all_single(parts, whole))  # gloo's reduce_scatter sends twice that
        part = parts.view(self.size, -1).sum(0)
        self.bytes_sent += (self.size - 1) * part.nbytes
        return part

    def broadcast(self, value: Value) -> Value:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        self._talk(lambda: torch.distributed.broadcast_object_list(box))
        return box[0]

    def gather(self, compute: Callable[[], Value]) -> list[Value]:
        """Return what ``compute`` returns in each process, in every process.

        Raises:
            InputError: as :meth:`total`.
        """
        if self.size == 1:
            return [compute()]
        value = self._with_others(compute)
        values: list[Any] = [None] * self.size
        self._talk(lambda: torch.distributed.all_gather_object(values, value))
        return values

    def _with_others(self, compute: Callable[[], Value]) -> Value:
        """Return what ``compute`` returns here; if it fails in one process, every process ends with the cause."""
        try:
            value = compute()
        except Exception as error:  # the others are told before it goes on
            self._share_failure(error)
            raise
        self._share_failure(None)
        return value

    def _share_failure(self, cause: Exception | None) -> None:
        failed = self.reduce(torch.tensor([0.0 if cause is None else 1.0], dtype=torch.float64))
        if not float(failed):
            return
        causes: list[str | None] = [None] * self.size
        text = None if cause is None else str(cause) or type(cause).__name__
        self._talk(lambda: torch.distributed.all_gather_object(causes, text))
        if cause is not None:
            return
        rank = next(i for i, text in enumerate(causes) if text is not None)
        whose = f"process {rank} of {self.size}: "
        raise InputError(whose + str(causes[rank]).removeprefix(whose))

    def reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over processes."""
        result = value.detach().cpu().clone()
        self._talk(lambda: torch.distributed.all_reduce(result))
        self.bytes_sent += result.nbytes
        return result.to(value.device)

    def _talk(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:  # what torch.distributed raises when a peer is gone
            refuse(
                f"process {self.rank} of {self.size}",
                expected="an answer of every process",
                got=str(error).splitlines()[0],
                cure="look for the process that ended first, then run again with --resume",
            )


class _Sum(Mapping[str, Tensor]):
    """Parameters summed over processes, tensor by tensor, only if somebody asks: P numbers travel then."""

    def __init__(self, processes: Processes, own: Params) -> None:
        self._processes, self._own, self._sums = processes, own, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._sums:
            self._sums[name] = self._processes.reduce(self._own[name].contiguous())
        return self._sums[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def local_device(device: str) -> str:
    """Return ``device``; for plain cuda under torchrun, the one that belongs to this process on its machine."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun started (gloo), or stay alone; SIGTERM then ends the work with an InputError."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    torch.distributed.init_process_group("gloo")
    try:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        joined = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), on_this_machine=local)
        with _end_in_words(joined):
            yield joined
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _end_in_words(joined: Processes) -> Iterator[None]:
    """Turn the SIGTERM that torchrun sends when another process has ended into an error where the work is.

    It would else end this process before it has said why and cleared up. After any error SIGTERM is ignored, since what
    follows is the error's line and the end; torchrun kills what does not end.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may a signal be handled
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        refuse(
            f"process {joined.rank} of {joined.size}",
            expected="to go on to the end",
            got="SIGTERM, as torchrun sends it when another process has ended",
            cure="look for the process that ended first, then run again with --resume",
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)
