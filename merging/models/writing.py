"""Weights as files of the libraries: dtypes, tied tensors, heads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bounds.types import refuse
from merging.models.base import TaskHead

WEIGHTS = "model.safetensors"
HEADS = "heads"
"""Folder of heads, where they are not written into the models."""


def converted(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors on the CPU, the float ones in ``dtype``, none sharing memory with another (tied ones are copied).

    Raises:
        InputError: a number that is too large for ``dtype``.
    """
    result, seen = {}, set()
    for name, value in state.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            narrow = value.to(dtype)
            if not torch.isfinite(narrow).all() and torch.isfinite(value).all():
                got = f"a number of magnitude {float(value.abs().max()):.3g}"
                refuse(f"tensor {name}", expected=f"the range of {dtype}", got=got, cure="choose bfloat16 or float32")
            value = narrow
        value = value.contiguous()
        result[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    return result


def save_state(folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write a state dict to ``model.safetensors`` of a folder, which is made."""
    folder.mkdir(exist_ok=True)
    save_file(converted(state, dtype), folder / WEIGHTS, {"format": "pt"})


def save_heads(folder: Path, heads: Mapping[str, TaskHead], dtype: torch.dtype) -> None:
    """Write every task's head to ``folder/heads/TASK.safetensors``; classes and scale stand in the metadata."""
    for task, head in heads.items():
        inside(folder, task)
        path = folder / HEADS / f"{task}.safetensors"  # a dot in the task's name is no suffix
        path.parent.mkdir(exist_ok=True)
        metadata = {"class_names": json.dumps(list(head.class_names)), "scale": repr(head.scale), "format": "pt"}
        save_file(converted(head.weights, dtype), path, metadata)


def inside(folder: Path, task: str) -> Path:
    """Return the place of a task in a folder.

    Raises:
        InputError: a task whose name is no name of a file.
    """
    if not task or task in (".", "..", HEADS) or Path(task).name != task:
        refuse(f"task {task!r}", expected="a name that a folder can have", got=repr(task), cure="rename the task")
    return folder / task
