"""Training of suite ``mini8``: contrastive pretraining of θ_0, low-rank fine-tuning of the experts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bounds.types import Params
from merging.checkpoints import apply_low_rank, read_safetensors
from merging.models.open_clip import build_clip, classifier, preprocess, zero_shot_head
from merging.suites import mini8
from merging.suites.mini8_sources import TASKS, Source

NOT_LOW_RANK = ("positional_embedding",)
EXPERT_AUGMENTATION = 0.6
"""Strength of the experts' augmentation; the pretraining's is 1."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of the training; the defaults made the shipped suite."""

    seed: int = 0
    """Seed of splits, initial weights, batches and augmentation."""
    pretrain_epochs: int = 24
    """Passes over the image-caption pairs."""
    pretrain_rate: float = 1e-3
    """Peak learning rate of the pretraining."""
    rank: int = 16
    """Rank of the experts' updates of matrices."""
    expert_epochs: int = 28
    """Passes over S_t."""
    expert_steps: int = 800
    """Optimiser steps of an expert at least."""
    expert_rate: float = 5e-4
    """Peak learning rate of the experts."""


def tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    """Return the suite's tokenizer for the model's context length."""
    return mini8.build_tokenizer(folder / "bpe_vocabulary.txt.gz", config["text_cfg"]["context_length"])


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that everybody may read."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def seeded_clip(config: dict[str, Any], seed: int) -> Any:
    """Return an untrained CLIP whose initial weights follow the seed."""
    torch.manual_seed(seed)
    return build_clip(config)


def pretrain(
    clip: Any, tokenize: Any, sets: Sequence[tuple[Source, np.ndarray, np.ndarray]], settings: TrainingSettings
) -> list[float]:
    """Train image and text tower contrastively on (source, images, labels); return the loss of each epoch."""
    captions, classes, images = [], [], []
    offsets: dict[str, int] = {}
    for source, x, y in sets:
        if source.file not in offsets:
            offsets[source.file] = len(captions)
            captions += [tokenize([t.format(name) for t in source.templates]) for name in source.class_names]
        images.append(preprocess(torch.from_numpy(x), 32, torch.float32))
        classes.append(torch.from_numpy(y.astype(np.int64)) + offsets[source.file])
    pixels, labels, tokens = torch.cat(images), torch.cat(classes), torch.stack(captions)

    batch, generator = 256, torch.Generator().manual_seed(settings.seed)
    steps = settings.pretrain_epochs * (len(pixels) // batch)
    matrices = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.pretrain_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.pretrain_rate, total_steps=steps, pct_start=0.1)
    log, started = [], time.perf_counter()
    clip.train()
    for epoch in range(settings.pretrain_epochs):
        total = 0.0
        order = torch.randperm(len(pixels), generator=generator)
        for index in order[: len(order) // batch * batch].split(batch):
            loss = _contrastive_loss(clip, augment(pixels[index], generator), labels[index], tokens, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            clip.logit_scale.data.clamp_(max=math.log(30.0))
            total += loss.item()
        log.append(total / (len(pixels) // batch))
        print(
            f"pretraining, epoch {epoch + 1}: loss {log[-1]:.3f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    clip.eval()
    return log


def _contrastive_loss(clip: Any, images: Tensor, labels: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """CLIP's symmetric loss on a batch in which each distinct class is captioned once and stands for its duplicates."""
    present, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    template = torch.randint(tokens.shape[1], (len(present),), generator=generator)
    embedded = F.normalize(clip.encode_image(images), dim=-1)
    described = F.normalize(clip.encode_text(tokens[present, template]), dim=-1)
    scores = clip.logit_scale.exp() * embedded @ described.T
    own = scores.gather(1, inverse[:, None])[:, 0]
    image_to_text = torch.logsumexp(scores + counts.log(), dim=1) - own
    text_to_image = torch.logsumexp(scores, dim=0)[inverse] - own
    return (image_to_text + text_to_image).mean() / 2


def augment(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Rotate (12°), scale (15 %), shift (12 % of the side), change contrast (20 %) and add noise, image by image.

    ``strength`` multiplies everything but the contrast.
    """
    count = len(pixels)

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator) * 2 - 1

    angle, scale = strength * uniform() * math.radians(12), 1 + 0.15 * strength * uniform()
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    across, down = 0.24 * strength * uniform(), 0.24 * strength * uniform()
    rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    noise = (
        0.1
        * strength
        * torch.rand(count, 1, 1, 1, generator=generator)
        * torch.randn(pixels.shape, generator=generator)
    )
    return moved * (1 + 0.2 * uniform())[:, None, None, None] + noise


@dataclass(frozen=True)
class ExpertJob:
    """What a process needs to train one expert: the task's name, the model, the suite's folder, settings."""

    name: str
    config: dict[str, Any]
    folder: Path
    settings: TrainingSettings


def train_expert(job: ExpertJob) -> tuple[str, list[float]]:
    """Fine-tune one expert on one thread, store its factors in half precision, return the loss of each epoch."""
    name, config, settings = job.name, job.config, job.settings
    torch.set_num_threads(1)
    clip = seeded_clip(config, settings.seed)
    clip.load_state_dict(read_safetensors(job.folder / "clip.safetensors"))
    visual, scale, size = clip.visual, float(clip.logit_scale.detach().exp()), config["vision_cfg"]["image_size"]
    head = zero_shot_head(clip, tokenizer(job.folder, config), TASKS[name].class_names, TASKS[name].templates)
    _, base = classifier(visual, head, scale, size)
    sample = mini8.read_splits(job.folder / f"{name}.npz")["train"]
    assert isinstance(sample.inputs, Tensor)
    assert sample.labels is not None
    pixels, labels = preprocess(sample.inputs, size, torch.float32), sample.labels

    generator = torch.Generator().manual_seed(settings.seed + 1)
    factors = _initial_factors(base, settings.rank, generator)
    batch = 64
    batches = math.ceil(len(pixels) / batch)
    epochs = max(settings.expert_epochs, math.ceil(settings.expert_steps / batches))
    optimizer = torch.optim.AdamW(list(factors.values()), lr=settings.expert_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.expert_rate, total_steps=epochs * batches, pct_start=0.1
    )
    curve = []
    for _ in range(epochs):
        total = 0.0
        for index in torch.randperm(len(pixels), generator=generator).split(batch):
            theta = apply_low_rank(base, factors)
            embedding = F.normalize(
                torch.func.functional_call(visual, theta, augment(pixels[index], generator, EXPERT_AUGMENTATION)),
                dim=-1,
            )
            loss = F.cross_entropy(scale * embedding @ head.T, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        curve.append(total / len(pixels))
    stored = {key: value.detach().half() for key, value in factors.items()}
    write_weights(stored, job.folder / f"expert_{name}.safetensors")
    return name, curve


def _initial_factors(base: Params, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Zero updates: up = 0 and a random down for matrices, delta = 0 for vectors."""
    factors = {}
    for name, value in base.items():
        if value.ndim < 2 or name in NOT_LOW_RANK:
            factors[f"{name}.delta"] = torch.zeros_like(value)
            continue
        rows, columns = value.shape[0], value[0].numel()
        factors[f"{name}.up"] = torch.zeros(rows, rank)
        factors[f"{name}.down"] = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
    return {key: value.requires_grad_() for key, value in factors.items()}
