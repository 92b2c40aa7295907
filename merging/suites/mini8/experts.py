"""Experts of suite ``mini8``: full fine-tuning of the image tower that keeps what θ_0 knows, then low rank.

A fine-tuned copy of a network of two million numbers forgets at once what it is not shown; a large one forgets
little. Two terms stand in for size (docs/suites.md):

- *keep*: beside every batch, images of the sets that are in no task have their embeddings held where θ_0 puts them;
- *any scale*: half a batch is scored at θ_0 + s τ with s drawn between a least scale and 1, so that a part of τ does a
  good part of its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.types import Params
from merging.suites.mini8.pretraining import augment

NOT_LOW_RANK = ("positional_embedding",)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How an expert is trained: AdamW without weight decay, one-cycle rate."""

    steps: int = 450
    """Optimiser steps."""
    batch: int = 32
    """Images of a step."""
    rate: float = 4e-4
    """Peak learning rate."""
    augmentation: float = 0.3
    """Strength of the augmentation; the pretraining's is 1."""
    keep: float = 0.1
    """Weight of the keep term: keep · logit scale · ‖e(x) - e_θ0(x)‖² on images that are in no task."""
    kept_images: int = 16
    """Images of the keep term in a step."""
    least_scale: float = 0.125
    """Least scale of τ at which half a batch is scored (log-uniform up to 1); 1 scores all of it at 1."""


def fine_tune(
    visual: nn.Module,
    base: Params,
    head: Tensor,
    logit_scale: float,
    sample: tuple[Tensor, Tensor],
    kept: Sequence[Tensor],
    settings: FineTuning,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the change τ of the tower's parameters, and the cross-entropy of each tenth of the steps (nats).

    Args:
        visual: the image tower.
        base: θ_0.
        head: frozen classifier of unit rows [C, D].
        logit_scale: factor of the scores.
        sample: S_t: pixels [N, 3, H, W] and labels [N].
        kept: pixels of the sets whose embeddings are kept; each set is as likely as another.
        settings: of the training.
        generator: of batches and augmentation.
    """
    pixels, labels = sample
    change = {name: torch.zeros_like(value).requires_grad_() for name, value in base.items()}
    optimizer = torch.optim.AdamW(list(change.values()), lr=settings.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps, pct_start=0.1)

    def embed(images: Tensor, scale: float) -> Tensor:
        moved = {name: value + scale * change[name] for name, value in base.items()}
        return _embeddings(visual, moved, images)

    losses, order = [], torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        if len(order) < settings.batch:
            order = torch.randperm(len(pixels), generator=generator)
        index, order = order[: settings.batch], order[settings.batch :]
        images = augment(pixels[index], generator, settings.augmentation)
        others = augment(_drawn(kept, settings.kept_images, generator), generator, settings.augmentation)
        whole = len(index) // 2
        scale = settings.least_scale ** float(torch.rand(1, generator=generator))
        found = embed(torch.cat([images[:whole], others]), 1.0)
        with torch.no_grad():
            still = _embeddings(visual, base, others)
        drift = (found[whole:] - still).square().sum(dim=1).mean()
        found = torch.cat([found[:whole], embed(images[whole:], scale)])
        loss = F.cross_entropy(logit_scale * found @ head.T, labels[index])
        optimizer.zero_grad()
        (loss + settings.keep * logit_scale * drift).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    parts = torch.tensor(losses).tensor_split(min(10, len(losses)))
    return {name: value.detach() for name, value in change.items()}, [float(part.mean()) for part in parts]


def _embeddings(visual: nn.Module, params: Params, images: Tensor) -> Tensor:
    return F.normalize(torch.func.functional_call(visual, dict(params), images), dim=-1)


def _drawn(sets: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` images: a set at random, then an image of it."""
    chosen = torch.randint(len(sets), (count,), generator=generator).tolist()
    return torch.stack([sets[k][int(torch.randint(len(sets[k]), (1,), generator=generator))] for k in chosen])
