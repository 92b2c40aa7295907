"""State dicts that ``torch.save`` wrote (.bin, .pt, .pth, .ckpt), read with ``weights_only``."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints.formats import check_file
from merging.checkpoints.pickled import read_pickled
from merging.records import DAMAGE

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""Names under which training loops keep the state dict of a model, beside optimizers and counters."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict, also one that is wrapped as ``{"state_dict": ...}``; mapped where the format allows it.

    Raises:
        InputError: a missing or damaged file; pickled modules; no state dict, or several of them.
    """
    archive = check_file(path) == "zip"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Validating sparse tensor")  # they are refused below
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=archive)
    except DAMAGE as error:
        _refuse(path, error)
    return state_of(content, f"weights {path}")


def _refuse(path: Path, error: BaseException) -> None:
    """Say whether a file is damaged, or holds objects that need the restricted reader."""
    imports = read_pickled(path).imports if isinstance(error, pickle.UnpicklingError) else ()
    if not imports:
        got = (str(error).splitlines() or [type(error).__name__])[0][:120]
        refuse(f"weights {path}", expected="a complete state dict", got=got, cure="copy the file again")
    shown = ", ".join(imports[:3]) + (f" and {len(imports) - 3} more" if len(imports) > 3 else "")
    refuse(
        f"weights {path}",
        expected="a state dict of tensors",
        got=f"pickled objects of {shown}",
        cure=f"mergebound convert {path} --to OUT.safetensors",
    )


def state_of(content: Any, what: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one state dict in a checkpoint of a training loop.

    Raises:
        InputError: no state dict, or several; names that are no text; tensors without plain numbers.
    """
    if not isinstance(content, Mapping):
        cure = "save module.state_dict()"
        refuse(what, expected="a state dict", got=f"a {type(content).__name__}", cure=cure)
    inner = {str(key): value for key, value in content.items() if is_state(value)}
    known = [key for key in WRAPPERS if key in inner]
    chosen = known or list(inner)
    if len(chosen) > 1:
        cure = "save the one that is meant in a file of its own"
        refuse(what, expected="one state dict", got=f"several: {', '.join(chosen[:4])}", cure=cure)
    state = inner[chosen[0]] if chosen else {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not state or not is_state(state):
        refuse(what, expected="a state dict", got=f"no tensors under {list(content)[:4]}", cure="save its state dict")
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized:
            refuse(
                f"{what}, {name}",
                expected="a dense tensor",
                got="a sparse or quantised one",
                cure="save it with .to_dense() or .dequantize()",
            )
    return {name: value.detach() for name, value in state.items()}


def is_state(value: object) -> bool:
    """Whether a value is a mapping of names to tensors, and not empty."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(part, Tensor) for key, part in value.items())
    )
