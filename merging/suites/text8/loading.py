"""The suite as its files say it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.types import Params, Sample
from merging.checkpoints import apply_low_rank, read_safetensors
from merging.suites.base import Suite
from merging.suites.manifest import read_manifest
from merging.suites.text8.network import build, classifier
from merging.suites.text8.stored import read_rounded
from merging.task import SPLITS, Task
from merging.task_vectors import Storage, TaskVectors

FILES = Path(__file__).parent / "files"
SCHEMA = "mergebound.text8/1"
WEIGHTS = "weights.safetensors"


def load(folder: Path = FILES, storage: Storage | None = None) -> Suite:
    """Load the suite; every file is checked against the manifest's sha256. One expert is in memory at a time.

    Args:
        folder: of the suite's files.
        storage: precision and place of the task vectors.

    Raises:
        InputError: a missing or changed file.
    """
    cure = "install the package again" if folder == FILES else "build the suite again"
    return assemble(folder, read_manifest(folder, SCHEMA, cure), storage)


def assemble(folder: Path, manifest: Mapping[str, Any], storage: Storage | None = None) -> Suite:
    """Make the suite of files that are known to be the manifest's.

    Args:
        folder: of the suite's files.
        manifest: its content.
        storage: precision and place of the task vectors.
    """
    encoder = build(read_rounded(folder / WEIGHTS), manifest["model"]["heads"])
    base: Params = {}
    tasks, experts = [], {}
    for entry in manifest["tasks"]:
        name = entry["name"]
        splits, names = read_examples(folder / f"{name}.npz")
        forward, base = classifier(encoder, zero_shot_head(encoder, names), manifest["model"]["logit_scale"])
        tasks.append(Task(name, forward, entry["class_names"], **splits))
        experts[name] = partial(_expert, base, folder / f"expert_{name}.safetensors")
    vectors = TaskVectors.from_experts(base, experts, storage, manifest["sha256"])
    return Suite(manifest["name"], vectors, tasks, sources=manifest["sha256"])


def _expert(base: Params, factors: Path) -> dict[str, Tensor]:
    return apply_low_rank(base, read_safetensors(factors))


@torch.no_grad()
def zero_shot_head(encoder: torch.nn.Module, names: Tensor) -> Tensor:
    """Return unit rows [C, D]: the embeddings by θ_0 of the classes' names, whose token ids are ``names`` [C, L]."""
    return encoder(names)


def read_examples(path: Path) -> tuple[dict[str, Sample], Tensor]:
    """Read a task's splits (token ids [N, L], int64; calibration without labels) and the ids [C, L] of its names."""
    with np.load(path, allow_pickle=False) as arrays:
        data = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}
    return {split: Sample(data[f"{split}_ids"], data.get(f"{split}_labels")) for split in SPLITS}, data["names"]
