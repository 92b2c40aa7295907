"""Reading checkpoints: one loader per layout, one canonical form (parameter name -> float32 tensor)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bounds.types import Params, refuse


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32 (float64 stays).

    Raises:
        InputError: a missing or damaged file, or values that are not finite.
    """
    if not path.is_file():
        refuse(
            f"weights {path}",
            expected="a safetensors file",
            got="nothing there",
            cure="install the package again",
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        refuse(f"weights {path}", expected="a complete safetensors file", got=error, cure="copy the file again")
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            refuse(
                f"weights {path}, {name}",
                expected="finite numbers",
                got="nan or inf",
                cure="check the checkpoint",
            )
    return {name: value if value.dtype == torch.float64 else value.float() for name, value in tensors.items()}


def apply_low_rank(base: Params, factors: Params) -> dict[str, Tensor]:
    """Return the expert θ_0 + τ of low-rank factors: τ = up · down for matrices, τ = delta for vectors.

    ``factors`` holds ``NAME.up`` [rows, r] and ``NAME.down`` [r, columns], or ``NAME.delta``, for every parameter NAME
    of ``base``; tensors of more than two axes are matrices over their first axis. The product is formed, factors are
    never added (LoRA, arXiv 2106.09685).

    Raises:
        InputError: factors missing, unknown or of the wrong shape.
    """
    expected = {k for n in base for k in ((f"{n}.delta",) if f"{n}.delta" in factors else (f"{n}.up", f"{n}.down"))}
    if expected != set(factors):
        refuse(
            "low-rank factors",
            expected="up and down, or delta, of every parameter",
            got=f"difference {sorted(expected ^ set(factors))[:4]}",
            cure="use factors made for this base",
        )
    expert = {}
    for name, value in base.items():
        delta = (
            factors[f"{name}.delta"] if f"{name}.delta" in factors else factors[f"{name}.up"] @ factors[f"{name}.down"]
        )
        if delta.numel() != value.numel():
            refuse(
                f"low-rank factors of {name}",
                expected=tuple(value.shape),
                got=tuple(delta.shape),
                cure="use factors made for this base",
            )
        expert[name] = value + delta.reshape(value.shape)
    return expert


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
