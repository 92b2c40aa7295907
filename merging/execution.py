"""How a merge is carried out, as opposed to what is merged: device, precision of passes, processes, checkpoints."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from bounds.types import refuse
from merging.processes import Processes

Autocast = Literal["none", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how passes run, and where progress is kept.

    Raises:
        InputError: a device that is not there, a number of steps below 1, parts of the weights without other processes.
    """

    device: str = "cpu"
    """Where merged weights, activations and gradients live: cpu, cuda or cuda:N. Task vectors stay where they are."""
    autocast: Autocast = "none"
    """Precision of the network's passes."""
    processes: Processes = field(default_factory=Processes)
    """The processes that share the examples."""
    sharded: bool = False
    """Each process merges and contracts its part of the weights alone; weights and their gradients travel."""
    checkpoint: Path | None = None
    """File that keeps λ, optimiser, generators and history; it is removed when the merge is done."""
    every: int = 10
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint, if there is one."""

    def __post_init__(self) -> None:
        if self.every < 1:
            refuse("checkpoint every", expected="at least 1 step", got=self.every, cure="raise it")
        if self.sharded and self.processes.size == 1:
            refuse("sharded", expected="several processes", got="one", cure="start with torchrun, or leave it out")
        check_device(self.device)

    def passes(self) -> AbstractContextManager[object]:
        """Return the context in which the network's passes run."""
        if self.autocast == "none":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.autocast))


def check_device(device: str) -> str:
    """Return a device that PyTorch can use here, set to full float32 (no tf32).

    Raises:
        InputError: unknown, or not present.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        got = f"{device!r} ({str(error).splitlines()[0][:80]})"
        refuse("device", expected="a device of this machine, e.g. cpu or cuda", got=got, cure="use --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return device
