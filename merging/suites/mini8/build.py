"""Build suite ``mini8`` from its source files: ``python -m merging.suites.mini8_build --source DIR``.

Three stages, all seeded:

1. *Data*. Every source is checked against its sha256 and split class by class into disjoint parts: ``pretrain`` (for
   θ_0 only, not shipped), ``calibration`` (stored without labels), ``validation``, ``train`` (the expert's S_t), and
   ``test`` (from the source's own test part). Some sources hold an image twice: copies are dropped from
   ``calibration`` and ``validation``; five images (three tasks) remain both in ``pretrain`` and in S_t.
2. *θ_0*. A small open_clip CLIP is trained contrastively on image-caption pairs: the ``pretrain`` parts of the eight
   tasks and all of three further sets. Pairs with equal captions are positives of each other (UniCL, arXiv 2204.03610).
3. *Experts*. Each fine-tunes the image tower on its S_t by cross-entropy with the frozen zero-shot head. Matrices get a
   low-rank update (LoRA, arXiv 2106.09685), vectors a full one; what is stored, in half precision, is the expert.

Training is deterministic for a machine and number of threads; other machines may round differently, which is why the
result is shipped. The manifest records settings, sha256 and the accuracies measured on the stored files.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from bounds.types import refuse
from merging.checkpoints import sha256
from merging.commands import run
from merging.methods import merge
from merging.models.open_clip import import_open_clip
from merging.suites import mini8
from merging.suites.mini8_sources import PRETRAINING_ONLY, TASKS, Source
from merging.suites.mini8_training import (
    ExpertJob,
    TrainingSettings,
    pretrain,
    seeded_clip,
    tokenizer,
    train_expert,
    write_weights,
)
from merging.task import mean_accuracy


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Settings of the build; the defaults made the shipped suite."""

    source: Path
    """Folder with the source .npz files (NOTICE names their origin)."""
    out: Path = mini8.FILES
    """Where the suite's files go."""
    pretrain_share: float = 0.08
    """Share of each task's source training images used for θ_0 instead of the expert."""
    held_apart: int = 200
    """Calibration images, and as many validation images, of each task (an eighth of its images at most)."""
    test_images: int = 1000
    """Test images kept of each task, at most."""
    width: int = 192
    """Width of the image tower (4 layers, patch 8, 32 x 32 pixels)."""
    threads: int = 3
    """Threads of the pretraining; experts are trained side by side, one thread each."""


Split = tuple[np.ndarray, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the build; return its exit status."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m merging.suites.mini8_build")
    return run(lambda: build(settings))


def build(settings: Settings) -> None:
    """Make every file of the suite."""
    torch.set_num_threads(settings.threads)
    splits = {name: _split(source, settings) for name, source in TASKS.items()}
    settings.out.mkdir(parents=True, exist_ok=True)
    config = _write_vocabulary_and_config(settings)
    for name, parts in splits.items():
        _write_images(settings.out / f"{name}.npz", parts)
    clip = seeded_clip(config, settings.seed)
    log = {"pretraining": pretrain(clip, tokenizer(settings.out, config), _captioned(splits, settings), settings)}
    state = {name: value.detach().half() for name, value in clip.state_dict().items()}
    state["logit_scale"] = clip.logit_scale.detach()
    write_weights(state, settings.out / "clip.safetensors")
    jobs = [ExpertJob(name, config, settings.out, settings) for name in TASKS]
    with multiprocessing.get_context("spawn").Pool(settings.threads) as pool:
        for name, curve in pool.imap_unordered(train_expert, jobs):
            log[f"expert_{name}"] = curve
            print(f"expert {name}: loss {curve[0]:.3f} -> {curve[-1]:.3f}", flush=True)
    _write_manifest(config, settings, log)


# Data ----------------------------------------------------------------------------------------------------------------


def _read(source: Source, folder: Path) -> dict[str, np.ndarray]:
    path = folder / f"{source.file}.npz"
    if not path.is_file() or sha256(path) != source.sha256:
        got = "another file" if path.is_file() else "nothing there"
        refuse(
            f"source {path}",
            expected=f"sha256 {source.sha256[:12]}…",
            got=got,
            cure="see NOTICE for its origin",
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}


def _split(source: Source, settings: Settings) -> dict[str, Split]:
    """Split a task's images, class by class, into pretrain, calibration, validation, train and test."""
    data, random = _read(source, settings.source), np.random.default_rng(settings.seed)
    classes = range(len(source.class_names))
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("pretrain", "calibration", "validation", "train", "test")
    }
    for label in classes:
        index = random.permutation(np.flatnonzero(data["y_train"] == label))
        first = round(settings.pretrain_share * len(index))
        apart = min(settings.held_apart // len(classes), len(index) // 8)
        cuts = [first, first + apart, first + 2 * apart]
        for name, part in zip(("pretrain", "calibration", "validation", "train"), np.split(index, cuts), strict=True):
            parts[name].append(part)
        test = random.permutation(np.flatnonzero(data["y_test"] == label))
        parts["test"].append(test[: settings.test_images // len(classes)])
    result = {}
    for name, indices in parts.items():
        side = "test" if name == "test" else "train"
        index = random.permutation(np.concatenate(indices))
        result[name] = (data[f"x_{side}"][index], data[f"y_{side}"][index].astype(np.uint8))
    seen = {image.tobytes() for name in ("pretrain", "train") for image in result[name][0]}
    for name in ("calibration", "validation"):
        images, labels = result[name]
        new = [k for k, image in enumerate(images) if not (image.tobytes() in seen or seen.add(image.tobytes()))]
        result[name] = (images[new], labels[new])
    return result


def _write_images(path: Path, parts: Mapping[str, Split]) -> None:
    arrays = {}
    for name in ("train", "calibration", "validation", "test"):
        arrays[f"{name}_images"] = parts[name][0]
        if name != "calibration":
            arrays[f"{name}_labels"] = parts[name][1]
    np.savez_compressed(path, **arrays)


def _write_vocabulary_and_config(settings: Settings) -> dict[str, Any]:
    """Keep the first 1,500 merges of open_clip's byte-pair vocabulary; return the model's configuration."""
    with gzip.open(import_open_clip().tokenizer.default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")[:1501]
    path = settings.out / "bpe_vocabulary.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
    words = mini8.build_tokenizer(path, 20).vocab_size
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": settings.width,
            "layers": 4,
            "head_width": 32,
        },
        "text_cfg": {"context_length": 20, "vocab_size": words, "width": 128, "heads": 4, "layers": 2},
    }


def _captioned(
    splits: Mapping[str, Mapping[str, Split]], settings: Settings
) -> list[tuple[Source, np.ndarray, np.ndarray]]:
    """Images of the pretraining with the source whose captions describe them."""
    sets = [(TASKS[name], *parts["pretrain"]) for name, parts in splits.items()]
    for source in PRETRAINING_ONLY.values():
        data = _read(source, settings.source)
        sets += [(source, data[f"x_{side}"], data[f"y_{side}"]) for side in ("train", "test")]
    return sets


# Manifest ------------------------------------------------------------------------------------------------------------


def _write_manifest(config: dict[str, Any], settings: Settings, log: Mapping[str, list[float]]) -> None:
    """Write the manifest, then measure the suite as it is stored and write the figures into it."""
    files = ["clip.safetensors", "bpe_vocabulary.txt.gz"]
    for name in TASKS:
        files += [f"{name}.npz", f"expert_{name}.safetensors"]
    content: dict[str, Any] = {
        "schema": "mergebound.mini8/1",
        "model": config,
        "tasks": [{"name": name, **asdict(source)} for name, source in TASKS.items()],
        "sha256": {name: sha256(settings.out / name) for name in files},
        "build": {k: v for k, v in asdict(settings).items() if k not in ("source", "out")},
        "log": log,
    }
    path = settings.out / "manifest.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    suite = mini8.load(settings.out)
    vectors, tasks = suite.task_vectors, suite.tasks
    experts = [mean_accuracy([task], vectors.expert(i), "test") for i, task in enumerate(tasks)]
    content["test_accuracy"] = {
        "pretrained": [mean_accuracy([task], vectors.base, "test") for task in tasks],
        "experts": experts,
        "average": [mean_accuracy([task], merge("average", vectors, tasks).merged, "test") for task in tasks],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for model, values in content["test_accuracy"].items():
        print(f"{model}: mean test accuracy {100 * sum(values) / len(values):.2f} %", flush=True)


if __name__ == "__main__":
    sys.exit(main())
