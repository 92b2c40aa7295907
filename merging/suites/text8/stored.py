"""Weights in a file: matrices as int8 with a scale for each row, everything else as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoints import read_safetensors

SCALE = ".row_scale"
"""Ending of the name of a matrix's scales, float32 [rows]."""
_STEPS = 127


def write_rounded(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state; what :func:`read_rounded` reads is it with every entry of a matrix rounded.

    The error is at most 1/254 of the largest entry of the row.
    """
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim != 2:
            stored[name] = value.contiguous()
            continue
        scale = value.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
        stored[name] = (value / scale[:, None]).round().to(torch.int8)
        stored[name + SCALE] = scale
    save_file(stored, path)


def read_rounded(path: Path) -> dict[str, Tensor]:
    """Read a state, in float32.

    Raises:
        InputError: a missing or damaged file.
    """
    stored = read_safetensors(path)
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith(SCALE)}
    for name, scale in scales.items():
        stored[name.removesuffix(SCALE)] *= scale[:, None]
    return stored
