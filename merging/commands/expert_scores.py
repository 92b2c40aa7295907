"""What the experts say on their test splits: computed once for all rows of a comparison, and kept in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merging.files import replacing
from merging.measured import Positions, Taught
from merging.suites import Suite
from merging.task import Task

KEPT = "mergebound.expert_scores/1"
EVENTS = 64
"""Classes of an expert's that are told apart at a position; all others are one more."""
_PARTS = ("", ".classes", ".counted")
"""What the tensors of a task are called after its number: scores, and where every position is scored its events."""


def expert_scores(suite: Suite, moved: Callable[[Task], Task], device: str, folder: Path | None) -> list[Taught]:
    """Return what each expert says on its task's test split: scores [N_t, C_t], or log-probabilities of EVENTS classes.

    Args:
        suite: experts and tasks.
        moved: gives a task whose network runs on the device.
        device: where networks run; scores of another device differ by rounding and are kept apart.
        folder: where the scores are kept; what is damaged there, or of another suite, is made again. None: nowhere.

    Raises:
        InputError: scores that are not finite.
    """
    if folder is None:
        return _scored(suite, moved)
    key = hashlib.sha256(json.dumps([KEPT, suite.identity, device]).encode()).hexdigest()
    path = folder / f"expert_scores-{key[:16]}.safetensors"
    found = _read(path, key, len(suite.tasks))
    if found is None:
        found = _scored(suite, moved)
        content = _tensors(found)
        with replacing(path, "the experts' scores") as temporary:
            save_file(content, temporary, metadata={"key": key, "digest": _digest(content)})
    return found


def _scored(suite: Suite, moved: Callable[[Task], Task]) -> list[Taught]:
    return [
        moved(task).taught(suite.task_vectors.expert(index), task.test.inputs, "test", top_k=EVENTS)
        for index, task in enumerate(suite.tasks)
    ]


def _tensors(found: list[Taught]) -> dict[str, Tensor]:
    """Name -> tensor of all tasks, as the file has them."""
    result: dict[str, Tensor] = {}
    for index, taught in enumerate(found):
        positions = taught.positions
        parts = (taught.scores, *((None, None) if positions is None else (positions.classes, positions.counted)))
        for part, tensor in zip(_PARTS, parts, strict=True):
            if tensor is not None:
                result[f"{index}{part}"] = tensor.contiguous()
    return result


def _read(path: Path, key: str, tasks: int) -> list[Taught] | None:
    """Return what a file keeps, unless it is damaged or of another key."""
    try:
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if said.get("key") != key or said.get("digest") != _digest(content):
        return None
    found = []
    for index in range(tasks):
        scores, classes, counted = (content.get(f"{index}{part}") for part in _PARTS)
        assert scores is not None
        found.append(Taught(scores, None if counted is None else Positions(counted, classes)))
    return found


def _digest(content: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(content, key=_order):
        values = content[name]
        found.update(f"{values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _order(name: str) -> tuple[int, str]:
    """Where a tensor's name stands: tasks by their number, so that files of earlier versions have the same digest."""
    index, _, part = name.partition(".")
    return int(index), part
