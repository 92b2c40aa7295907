"""Processes joined by gloo, as torchrun would start them, but forked from the test: no second import of PyTorch."""

import multiprocessing
import os
from contextlib import nullcontext

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from bounds.types import InputError
from merging.processes import processes


def together(work, size: int = 2, *, join: bool = True) -> list:
    """Run ``work(rank)`` in ``size`` forked processes joined by gloo; return what each returns or its error's text.

    Without ``join`` they can be joined, and ``work(None)`` does so.
    The store is this process's, as it is torchrun's agent's: its port is the system's choice and nobody else's.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(size)]

    def child(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(store.port),
            LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True",
        )  # fmt: skip
        try:
            with processes() if join else nullcontext() as joined:
                result = work(joined)
        except (InputError, ZeroDivisionError) as error:
            result = f"{type(error).__name__}: {error}"
        pipes[rank][1].send(result)

    children = [context.Process(target=child, args=(rank,)) for rank in range(size)]
    for process in children:
        process.start()
    for _, end in pipes:
        end.close()
    results = [_received(start) for start, _ in pipes]
    for process in children:
        process.join()
    return results


def _received(pipe) -> object:
    """Return what a process sent, or None when it ended without a word."""
    assert pipe.poll(300), "a process hangs"
    try:
        return pipe.recv()
    except EOFError:
        return None
