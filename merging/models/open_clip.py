"""CLIP classifiers as pure functions: image tower with weights θ, frozen zero-shot head, pixels in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.autodiff import functional, without_jit_warning
from bounds.types import Forward, Inputs, Params, refuse

Tokenizer = Callable[[list[str]], Tensor]


def import_open_clip() -> Any:
    """Import open_clip without the warning that a dependency of it (timm) raises while being imported."""
    with without_jit_warning():
        import open_clip
    return open_clip


def build_clip(config: dict[str, Any]) -> nn.Module:
    """Build an open_clip CLIP from ``{"embed_dim", "vision_cfg", "text_cfg"}``, in evaluation mode."""
    return import_open_clip().CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()


def preprocess(images: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Turn uint8 pixels [N, H, W] (grey) or [N, H, W, 3] into [N, 3, size, size] in [-1, 1], padded with black."""
    if images.ndim == 3:
        images = images.unsqueeze(-1).expand(*images.shape, 3)
    pixels = images.movedim(-1, 1).to(dtype) / 127.5 - 1
    border = (size - images.shape[1]) // 2
    return F.pad(pixels, (border, border, border, border), value=-1.0) if border else pixels


@torch.no_grad()
def zero_shot_head(clip: Any, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Classifier [C, D] of unit rows: per class, the normalised mean over prompts of normalised text embeddings.

    The logit scale is not in it (see :func:`classifier`). Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
    """
    rows = []
    for name in class_names:
        embeddings = clip.encode_text(tokenizer([template.format(name) for template in templates]))
        rows.append(F.normalize(F.normalize(embeddings, dim=-1).mean(dim=0), dim=0))
    return torch.stack(rows)


def classifier(visual: nn.Module, head: Tensor, logit_scale: float, image_size: int) -> tuple[Forward, Params]:
    """Return (forward, θ): scores = logit_scale · normalise(visual(x)) · head^T for uint8 pixels x. Exact.

    Args:
        visual: open_clip image tower; its parameters are θ.
        head: unit rows [C, D], frozen.
        logit_scale: the factor itself (exp of CLIP's parameter), kept apart from the head so that it is applied once.
        image_size: side of the tower's input in pixels.
    """
    if head.ndim != 2 or not bool(((head.norm(dim=1) - 1).abs() < 1e-3).all()):
        refuse(
            "zero-shot head",
            expected="unit rows [C, D] without the logit scale",
            got=f"norms {head.norm(dim=-1)}",
            cure="divide the scale out",
        )

    def apply(module: nn.Module, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        dtype = next(module.parameters()).dtype
        embedding = F.normalize(module(preprocess(inputs, image_size, dtype)), dim=-1)
        return logit_scale * embedding @ head.T.to(embedding)  # its dtype and its device

    return functional(visual, apply)
