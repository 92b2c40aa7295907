"""Suite ``mini8``: eight real image tasks, a small CLIP and eight experts, shipped inside the package.

Files (``mini8_files``): ``manifest.json`` (model, tasks, prompts, licences, sha256, measured figures),
``clip.safetensors`` (θ_0 and the text tower), ``expert_TASK.safetensors`` (low-rank factors), ``TASK.npz`` (images) and
``bpe_vocabulary.txt.gz``. They are made by ``python -m merging.suites.mini8_build``.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bounds.types import Params, Sample, refuse
from merging.checkpoints import apply_low_rank, read_safetensors, sha256
from merging.models.open_clip import build_clip, classifier, import_open_clip, zero_shot_head
from merging.suites.base import Suite
from merging.task import Task
from merging.task_vectors import Storage, TaskVectors

FILES = Path(__file__).parent / "mini8_files"


def suite(storage: Storage) -> Suite:
    """Return the suite as ``merging.suites.load`` gives it."""
    return load(storage=storage)


def load(folder: Path = FILES, storage: Storage | None = None) -> Suite:
    """Load the suite; every file is checked against the manifest's sha256. One expert is in memory at a time.

    Raises:
        InputError: a missing or changed file.
    """
    manifest = read_manifest(folder)
    clip: Any = build_clip(manifest["model"])
    clip.load_state_dict(read_safetensors(folder / "clip.safetensors"))
    tokenizer = build_tokenizer(folder / "bpe_vocabulary.txt.gz", manifest["model"]["text_cfg"]["context_length"])
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check the sha256 of every file it names.

    Raises:
        InputError: a missing or changed file.
    """
    path, cure = folder / "manifest.json", "install the package again"
    if not path.is_file():
        refuse(f"suite mini8, {path}", expected="the suite's manifest", got="nothing there", cure=cure)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in manifest["sha256"].items():
        got = sha256(folder / name)[:12] if (folder / name).is_file() else "nothing there"
        if got != digest[:12]:
            refuse(f"suite mini8, {name}", expected=f"sha256 {digest[:12]}…", got=got, cure=cure)
    return manifest


def build_tokenizer(vocabulary: Path, context_length: int) -> Any:
    """open_clip's byte-pair tokenizer over a shortened list of merges (any text can still be written in it)."""
    return import_open_clip().SimpleTokenizer(str(vocabulary), context_length=context_length)


def read_splits(path: Path) -> dict[str, Sample]:
    """Read the four splits of a task; images stay uint8, the calibration split has no labels."""
    with np.load(path, allow_pickle=False) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {
        split: Sample(data[f"{split}_images"], data[f"{split}_labels"].long() if f"{split}_labels" in data else None)
        for split in ("train", "calibration", "validation", "test")
    }
