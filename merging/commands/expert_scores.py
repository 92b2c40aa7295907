"""What the experts say on their test splits: computed once for all rows of a comparison, and kept in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merging.files import replacing
from merging.suites import Suite
from merging.task import Task, score_task

KEPT = "mergebound.expert_scores/1"


def expert_scores(suite: Suite, moved: Callable[[Task], Task], device: str, folder: Path | None) -> list[Tensor]:
    """Return each expert's scores [N_t, C_t] on its task's test split.

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
    found = _read(path, key)
    if found is None:
        found = _scored(suite, moved)
        content = {str(index): scores.contiguous() for index, scores in enumerate(found)}
        with replacing(path, "the experts' scores") as temporary:
            save_file(content, temporary, metadata={"key": key, "digest": _digest(found)})
    return found


def _scored(suite: Suite, moved: Callable[[Task], Task]) -> list[Tensor]:
    return [
        score_task(moved(task), suite.task_vectors.expert(index), task.test.inputs, "test", "expert")
        for index, task in enumerate(suite.tasks)
    ]


def _read(path: Path, key: str) -> list[Tensor] | None:
    """Return the scores that a file keeps, unless it is damaged or of another key."""
    try:
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            found = [file.get_tensor(str(index)) for index in range(len(file.keys()))]
    except (OSError, SafetensorError):
        return None
    return found if said.get("key") == key and said.get("digest") == _digest(found) else None


def _digest(scores: Sequence[Tensor]) -> str:
    found = hashlib.sha256()
    for values in scores:
        found.update(f"{values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
