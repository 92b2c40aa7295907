"""Weights in safetensors files: mapped, or read as float32."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints.formats import check_file
from merging.params import finite


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file: tensors in the file's precision that are read when they are used, and not checked here.

    Tied weights that ``safetensors.torch.save_model`` wrote once come back under all their names, in the same memory.

    Raises:
        InputError: a missing or damaged file, or one that holds something else.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        refuse(f"weights {path}", expected="a complete safetensors file", got=error, cure="copy the file again")
    return tensors | {name: tensors[kept] for name, kept in tied.items() if kept in tensors and name not in tensors}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32 (float64 stays); each number is read once, in the usual case.

    Raises:
        InputError: a missing or damaged file, or values that are not finite.
    """
    tensors = {}
    for name, stored in map_safetensors(path).items():
        value = stored if stored.dtype == torch.float64 else stored.float()
        if not finite(value):
            refuse(
                f"weights {path}, {name}",
                expected="finite numbers",
                got="nan or inf",
                cure="check the checkpoint",
            )
        tensors[name] = value
    return tensors


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
