"""Contrastive pretraining of θ_0 of suite ``mini8``, on image-caption pairs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from merging.models.open_clip import build_clip, preprocess
from merging.suites.mini8.images import Captioned


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How θ_0 is trained: AdamW, one-cycle rate, augmented images, UniCL's loss."""

    epochs: int = 14
    """Passes over the image-caption pairs."""
    rate: float = 1e-3
    """Peak learning rate."""
    batch: int = 256
    """Images of a step."""
    named_share: float = 0.04
    """Share of a task's images (one of each class at least) captioned by the class's name; others in other words."""
    glyphs: int = 5000
    """Drawn characters with their Unicode names as captions."""


def seeded_clip(config: dict[str, Any], seed: int) -> Any:
    """Return an untrained CLIP whose initial weights follow the seed."""
    torch.manual_seed(seed)
    return build_clip(config)


def pretrain(
    clip: Any, tokenize: Callable[[list[str]], Tensor], sets: Sequence[Captioned], settings: Pretraining, seed: int
) -> list[float]:
    """Train image and text tower; return the mean loss of each epoch (nats)."""
    size = clip.visual.image_size[0]
    pixels = torch.cat([preprocess(torch.from_numpy(part.images), size, torch.float32) for part in sets])
    labels, tokens = _groups(sets, tokenize)
    generator, batches = torch.Generator().manual_seed(seed), len(pixels) // settings.batch
    optimizer = torch.optim.AdamW(_parameters(clip), lr=settings.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=settings.epochs * batches, pct_start=0.1
    )
    log, started = [], time.monotonic()
    clip.train()
    for epoch in range(settings.epochs):
        total, order = 0.0, torch.randperm(len(pixels), generator=generator)
        for index in order[: batches * settings.batch].split(settings.batch):
            loss = _loss(clip, augment(pixels[index], generator), labels[index], tokens, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            clip.logit_scale.data.clamp_(max=math.log(30.0))
            total += loss.item()
        log.append(total / batches)
        said = f"pretraining, epoch {epoch + 1} of {settings.epochs}: loss {log[-1]:.3f}"
        print(f"{said}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    clip.eval()
    return log


def _parameters(clip: Any) -> list[dict[str, Any]]:
    matrices = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def _groups(sets: Sequence[Captioned], tokenize: Callable[[list[str]], Tensor]) -> tuple[Tensor, Tensor]:
    """Return each image's group of captions [N], equal captions being one group, and the groups' tokens [G, K, L]."""
    known: dict[tuple[str, ...], int] = {}
    labels = []
    for part in sets:
        index = torch.tensor([known.setdefault(texts, len(known)) for texts in part.texts])
        labels.append(index[torch.from_numpy(part.groups)])
    most = max(len(texts) for texts in known)
    tokens = [tokenize([texts[k % len(texts)] for k in range(most)]) for texts in known]
    return torch.cat(labels), torch.stack(tokens)


def _loss(clip: Any, images: Tensor, labels: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """CLIP's symmetric loss on a batch in which each group is captioned once and stands for its images (UniCL)."""
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
