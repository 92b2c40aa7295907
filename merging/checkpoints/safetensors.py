"""Reading checkpoints: one loader per layout, one canonical form (parameter name -> float32 tensor)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bounds.types import refuse
from merging.params import finite


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file: tensors in the file's precision that are read when they are used, and not checked here.

    Raises:
        InputError: a missing or damaged file.
    """
    if not path.is_file():
        refuse(
            f"weights {path}",
            expected="a safetensors file",
            got="nothing there",
            cure="install the package again",
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        refuse(f"weights {path}", expected="a complete safetensors file", got=error, cure="copy the file again")


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
    """Hexadecimal sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
