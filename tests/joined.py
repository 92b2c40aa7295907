"""Processes joined by gloo, as torchrun would start them, but forked from the test: no second import of PyTorch."""

import multiprocessing
import os
import socket

from bounds.types import InputError
from merging.processes import processes


def together(work, size: int = 2) -> list:
    """Run ``work(rank)`` in ``size`` forked processes joined by gloo; return what each returns or its error's text."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
        )
        try:
            with processes() as joined:
                result = work(joined)
        except (InputError, ZeroDivisionError) as error:
            result = f"{type(error).__name__}: {error}"
        queue.put((rank, result))

    children = [context.Process(target=child, args=(rank,)) for rank in range(size)]
    for process in children:
        process.start()
    for process in children:
        process.join(60)
        assert process.exitcode is not None, "a process hangs"
    results = {}
    while not queue.empty():
        rank, result = queue.get()
        results[rank] = result
    return [results.get(rank) for rank in range(size)]
