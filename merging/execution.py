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


@dataclass(frozen=True)
class Execution:
    """Where and how passes run, and where progress is kept.

    Raises:
        InputError: a device that is not there, a number of steps below 1.
    """

    device: str = "cpu"
    """Where merged weights, activations and gradients live: cpu, cuda or cuda:N. Task vectors stay where they are."""
    autocast: Autocast = "none"
    """Precision of the network's passes."""
    processes: Processes = field(default_factory=Processes)
    """The processes that share the tasks."""
    checkpoint: Path | None = None
    """File that keeps λ, optimiser, generators and history; it is removed when the merge is done."""
    every: int = 10
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint, if there is one."""

    def __post_init__(self) -> None:
        if self.every < 1:
            refuse("checkpoint every", expected="at least 1 step", got=self.every, cure="raise it")
        check_device(self.device)

    def passes(self) -> AbstractContextManager[object]:
        """Return the context in which the network's passes run."""
        if self.autocast == "none":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.autocast))


def check_device(name: str) -> torch.device:
    """Return the device, in full float32 (no tf32).

    Raises:
        InputError: an unknown or absent device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        refuse("device", expected="cpu or cuda", got=repr(name), cure="choose one")
    if device.type not in ("cpu", "cuda"):
        refuse("device", expected="cpu or cuda", got=repr(name), cure="choose one")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            refuse(
                "device",
                expected=f"one of {torch.cuda.device_count()} CUDA devices",
                got=repr(name),
                cure="use --device cpu",
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
