"""Reading suite ``mini8`` from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bounds.types import Params, Sample
from merging.checkpoints import apply_low_rank, read_safetensors
from merging.models.open_clip import build_clip, classifier, import_open_clip, zero_shot_head
from merging.suites.base import Suite
from merging.suites.manifest import read_manifest
from merging.task import SPLITS, Task
from merging.task_vectors import Storage, TaskVectors

FILES = Path(__file__).parent / "files"
SCHEMA = "mergebound.mini8/2"
CLIP, VOCABULARY = "clip.safetensors", "bpe_vocabulary.txt.gz"


def load(folder: Path = FILES, storage: Storage | None = None) -> Suite:
    """Load the suite; every file is checked against the manifest's sha256. One expert is in memory at a time.

    Raises:
        InputError: a missing or changed file.
    """
    cure = "install the package again" if folder == FILES else "build the suite again"
    return assemble(folder, read_manifest(folder, SCHEMA, cure), storage)


def assemble(folder: Path, manifest: Mapping[str, Any], storage: Storage | None = None) -> Suite:
    """Make the suite of files that are known to be the manifest's."""
    clip = read_clip(folder / CLIP, manifest["model"])
    tokenizer = build_tokenizer(folder / VOCABULARY, manifest["model"]["text_cfg"]["context_length"])
    scale, size = float(clip.logit_scale.detach().exp()), manifest["model"]["vision_cfg"]["image_size"]
    base = {name: value.detach() for name, value in clip.visual.named_parameters()}
    tasks, experts = [], {}
    for entry in manifest["tasks"]:
        head = zero_shot_head(clip, tokenizer, entry["class_names"], entry["templates"])
        forward, base = classifier(clip.visual, head, scale, size)
        tasks.append(Task(entry["name"], forward, entry["class_names"], **read_splits(folder / f"{entry['name']}.npz")))
        experts[entry["name"]] = partial(_expert, base, folder / f"expert_{entry['name']}.safetensors")
    vectors = TaskVectors.from_experts(base, experts, storage, manifest["sha256"])
    return Suite("mini8", vectors, tasks, sources=manifest["sha256"])


def _expert(base: Params, factors: Path) -> dict[str, torch.Tensor]:
    return apply_low_rank(base, read_safetensors(factors))


def read_clip(path: Path, config: Mapping[str, Any]) -> Any:
    """Return the CLIP whose weights lie in a file, in evaluation mode."""
    clip: Any = build_clip(dict(config))
    clip.load_state_dict(read_safetensors(path))
    return clip


def build_tokenizer(vocabulary: Path, context_length: int) -> Any:
    """open_clip's byte-pair tokenizer over a shortened list of merges (any text can still be written in it)."""
    return import_open_clip().SimpleTokenizer(str(vocabulary), context_length=context_length)


def read_splits(path: Path) -> dict[str, Sample]:
    """Read the four splits of a task; images stay uint8, the calibration split has no labels."""
    with np.load(path, allow_pickle=False) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {
        split: Sample(data[f"{split}_images"], data[f"{split}_labels"].long() if f"{split}_labels" in data else None)
        for split in SPLITS
    }
