"""Build suite ``mini8`` from its source files: ``python -m merging.suites.build mini8 --source DIR``.

Stages, each kept in the work folder (:mod:`merging.suites.stages`), all seeded:

1. *Images*. Every source is checked against its sha256 and split class by class into disjoint parts: ``pretrain`` (for
   θ_0 only, not shipped), ``calibration`` (stored without labels) and ``train`` (the expert's S_t) from its training
   part; ``validation`` and ``test`` from its test part. No image is in two of them.
2. *θ_0*. A small open_clip CLIP is trained contrastively on image-caption pairs: the ``pretrain`` parts, captioned in
   other words than the names of the classes but for a small share, all of three further sets, and drawn characters.
   Pairs with equal captions are positives of each other (UniCL, arXiv 2204.03610).
3. *Experts*. Each fine-tunes the image tower on its S_t by cross-entropy with the frozen zero-shot head
   (:mod:`merging.suites.mini8.experts`); the best approximation of low rank of the change of each matrix, in half
   precision, is the expert.
4. *Figures*. Test accuracies of the suite as it is stored, for the manifest.

Interrupted at any time and started again, it gives the same files. Training is deterministic for a machine and number
of threads; other machines may round differently, which is why the result is shipped.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints import low_rank_factors, read_safetensors, sha256
from merging.draws import task_generators
from merging.files import check_folder
from merging.models.open_clip import import_open_clip, preprocess, zero_shot_head
from merging.suites.mini8.experts import NOT_LOW_RANK, FineTuning, fine_tune
from merging.suites.mini8.images import Captioned, Sizes, captioned, in_no_task, split
from merging.suites.mini8.loading import CLIP, FILES, SCHEMA, VOCABULARY, assemble, build_tokenizer, read_clip
from merging.suites.mini8.pretraining import Pretraining, pretrain, seeded_clip
from merging.suites.mini8.sources import PRETRAINING_ONLY, TASKS, Source
from merging.suites.stages import Stages, check_counts, read_losses, write_trained
from merging.suites.suite_shipping import ship
from merging.task import SPLITS

MERGES = 1500
"""Merges of open_clip's byte-pair vocabulary that are kept."""
CONTEXT = 20
"""Tokens of a caption at most."""
SIDE = 32
"""Pixels of an image's side."""
HEAD_WIDTH = 32
"""Width of one head of attention."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the build; the defaults made the shipped suite."""

    source: Path
    """Folder with the source .npz files (NOTICE names their origin)."""
    out: Path = FILES
    """Where the suite's files go."""
    work: Path = Path("build/mini8")
    """Where stages are kept; a build that was interrupted goes on from there."""
    seed: int = 0
    """Seed of splits, initial weights, batches and augmentation; every task has its own draws."""
    splits: Sizes = field(default_factory=Sizes)
    width: int = 192
    """Width of the image tower (4 layers, patch 8, 32 x 32 pixels)."""
    pretraining: Pretraining = field(default_factory=Pretraining)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    rank: int = 64
    """Rank of the change of each matrix."""
    threads: int = 2
    """Threads of PyTorch."""


def build(
    settings: Settings, tasks: Mapping[str, Source] = TASKS, others: Mapping[str, Source] = PRETRAINING_ONLY
) -> None:
    """Make every file of the suite.

    Args:
        settings: of the build.
        tasks: name -> source.
        others: sources that only the pretraining sees.

    Raises:
        InputError: sources that are missing or others; places that cannot be written.
    """
    _check(settings)
    torch.set_num_threads(settings.threads)
    check_folder(settings.out, "folder of the suite", parents=True)
    made = _Build(settings, tasks, others)
    files = made.files()
    ship(made.stages, files, made.manifest(files), settings.out, assemble)


def _check(settings: Settings) -> None:
    """Refuse settings that no build can have."""
    counts = {"width": settings.width, "rank": settings.rank, "threads": settings.threads}
    counts |= {f"splits.{name}": getattr(settings.splits, name) for name in ("held_apart", "test_images")}
    counts |= {f"pretraining.{name}": getattr(settings.pretraining, name) for name in ("epochs", "batch", "glyphs")}
    counts |= {f"fine_tuning.{name}": getattr(settings.fine_tuning, name) for name in ("steps", "batch", "kept_images")}
    check_counts(counts)
    if settings.width % HEAD_WIDTH:
        refuse("width", expected=f"a multiple of {HEAD_WIDTH}", got=settings.width, cure="e.g. 192")
    shares = {
        "splits.pretrain_share": settings.splits.pretrain_share,
        "pretraining.named_share": settings.pretraining.named_share,
        "fine_tuning.least_scale": settings.fine_tuning.least_scale,
    }
    for name, value in shares.items():
        if not 0 < value <= 1 or (name == "splits.pretrain_share" and value > 0.9):
            refuse(name, expected="a share above 0, some images being left", got=value, cure="e.g. 0.5")


class _Build:
    """The stages of one build."""

    def __init__(self, settings: Settings, tasks: Mapping[str, Source], others: Mapping[str, Source]) -> None:
        self.settings, self.tasks, self.others = settings, tasks, others
        self.stages = Stages(settings.work)
        source, seed = settings.source, settings.seed
        self.splits = {name: split(task, name, source, settings.splits, seed) for name, task in tasks.items()}
        self.log: dict[str, list[float]] = {}
        self.images = {name: self._images(name) for name in tasks}
        self.vocabulary = self.stages.file(VOCABULARY, {"merges": MERGES}, _write_vocabulary)
        self.tokenize = build_tokenizer(self.vocabulary, CONTEXT)
        self.config = _config(settings.width, self.tokenize.vocab_size)

    def files(self) -> dict[str, Path]:
        """Return the suite's files: name -> where its stage is kept."""
        clip = self._clip()
        found = {CLIP: clip, VOCABULARY: self.vocabulary}
        found |= {f"{name}.npz": path for name, path in self.images.items()}
        return found | {f"expert_{name}.safetensors": self._expert(name, clip) for name in self.tasks}

    def manifest(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Return the manifest without the figures."""
        return {
            "schema": SCHEMA,
            "model": self.config,
            "tasks": [{"name": name, **asdict(source)} for name, source in self.tasks.items()],
            "sha256": {name: sha256(path) for name, path in sorted(files.items())},
            "build": {k: v for k, v in asdict(self.settings).items() if k not in ("source", "out", "work")},
            "log": {name: [round(loss, 4) for loss in curve] for name, curve in self.log.items()},
        }

    def _images(self, name: str) -> Path:
        parts = self.splits[name]
        made_of = {
            "source": self.tasks[name].sha256,
            "splits": asdict(self.settings.splits),
            "seed": self.settings.seed,
        }

        def make(path: Path) -> None:
            arrays = {f"{part}_images": parts[part][0] for part in SPLITS}
            arrays |= {f"{part}_labels": parts[part][1].astype(np.uint8) for part in SPLITS if part != "calibration"}
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)

        return self.stages.file(f"{name}.npz", made_of, make)

    def _clip(self) -> Path:
        settings = self.settings
        made_of = {
            "tasks": {name: asdict(source) for name, source in self.tasks.items()},
            "others": {name: asdict(source) for name, source in self.others.items()},
            "config": self.config,
            "pretraining": asdict(settings.pretraining),
            "splits": asdict(settings.splits),
            "seed": settings.seed,
            "threads": settings.threads,
        }

        def make(path: Path) -> None:
            clip = seeded_clip(self.config, settings.seed)
            tasks = captioned(self.tasks, self.splits, settings.pretraining.named_share, settings.seed)
            sets = [*tasks, *self.in_no_task]
            log = pretrain(clip, self.tokenize, sets, settings.pretraining, settings.seed)
            state = {name: value.detach().half().contiguous() for name, value in clip.state_dict().items()}
            state["logit_scale"] = clip.logit_scale.detach()
            write_trained(state, log, path)

        path = self.stages.file(CLIP, made_of, make)
        self.log["pretraining"] = read_losses(path)
        return path

    @cached_property
    def in_no_task(self) -> list[Captioned]:
        """What the pretraining sees besides the tasks, and what the keep term draws from: read and drawn once."""
        settings = self.settings
        return in_no_task(self.others, settings.source, settings.pretraining.glyphs, settings.seed)

    def _expert(self, name: str, clip: Path) -> Path:
        settings = self.settings
        made_of = {
            "clip": sha256(clip),
            "images": sha256(self.images[name]),
            "fine_tuning": asdict(settings.fine_tuning),
            "seed": settings.seed,
            "threads": settings.threads,
        }

        def train(path: Path) -> None:
            write_trained(*self._fine_tuned(name, clip), path)

        def approximate(path: Path) -> None:
            save_file(low_rank_factors(read_safetensors(trained), settings.rank, NOT_LOW_RANK), path)

        trained = self.stages.file(f"change_{name}.safetensors", made_of, train)
        self.log[f"expert_{name}"] = read_losses(trained)
        kept = {"trained": sha256(trained), "rank": settings.rank}
        return self.stages.file(f"expert_{name}.safetensors", kept, approximate)

    def _fine_tuned(self, name: str, clip: Path) -> tuple[dict[str, Tensor], list[float]]:
        source, settings = self.tasks[name], self.settings
        model = read_clip(clip, self.config)
        head = zero_shot_head(model, self.tokenize, source.class_names, source.templates)
        images, labels = self.splits[name]["train"]
        (generator,) = task_generators([name], settings.seed)
        return fine_tune(
            model.visual,
            {key: value.detach() for key, value in model.visual.named_parameters()},
            head,
            float(model.logit_scale.detach().exp()),
            (_pixels(images), torch.from_numpy(labels)),
            [_pixels(part.images) for part in self.in_no_task],
            settings.fine_tuning,
            generator,
        )


def _pixels(images: np.ndarray) -> Tensor:
    return preprocess(torch.from_numpy(images), SIDE, torch.float32)


def _config(width: int, words: int) -> dict[str, Any]:
    vision = {"image_size": SIDE, "patch_size": 8, "width": width, "layers": 4, "head_width": HEAD_WIDTH}
    text = {"context_length": CONTEXT, "vocab_size": words, "width": 128, "heads": 4, "layers": 2}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


def _write_vocabulary(path: Path) -> None:
    """Keep the first merges of open_clip's byte-pair vocabulary."""
    with gzip.open(import_open_clip().tokenizer.default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")[: MERGES + 1]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
