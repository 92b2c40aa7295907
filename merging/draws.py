"""Draws that do not depend on the order of the tasks: each task has its own generator."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


def task_generators(names: Sequence[str], seed: int) -> list[torch.Generator]:
    """One generator per task, from the seed and the task's name: the order of the tasks does not matter."""
    return [torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())) for name in names]


def chosen_positions(names: Sequence[str], sizes: Sequence[int], count: int, seed: int) -> list[torch.Tensor]:
    """Positions of ``count`` examples of each task, of ``sizes`` [T] that there are, as every method chooses them.

    One function, so that whoever wants examples that a merge did not use can tell which those are.
    """
    generators = task_generators(names, seed)
    return [torch.randperm(n, generator=g)[:count] for n, g in zip(sizes, generators, strict=True)]
