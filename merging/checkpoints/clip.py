"""CLIP image towers of transformers under the names of open_clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bounds.types import refuse

_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TOWER, _PROJECTION, _MARK = "vision_model.", "visual_projection.weight", "embeddings.class_embedding"


def is_hf_clip(names: Iterable[str]) -> bool:
    """Whether names are those of a CLIP, or CLIP image tower, of transformers (before version 5 or since)."""
    return any(name in (_MARK, _TOWER + _MARK) for name in names)


def hf_clip_to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower of transformers' CLIP as the state dict of open_clip's ``VisionTransformer``.

    Args:
        weights: state dict of CLIPModel, CLIPVisionModel or CLIPVisionModelWithProjection, with the prefix
            ``vision_model.`` or, as transformers 5 writes the second of them, without. The text tower is left out.

    Returns:
        open_clip's names -> tensors, in its order; queries, keys and values stand in one tensor, and ``proj`` is the
        projection's transpose. ``proj`` is missing where ``weights`` have none (CLIPVisionModel).

    Raises:
        InputError: no such tower, or tensors of it missing.
    """
    names = set(weights)
    if not is_hf_clip(names):
        got = f"names such as {', '.join(list(weights)[:3])}"
        refuse("CLIP image tower", expected="names of transformers' CLIP", got=got, cure="use weights of one")
    start = _TOWER if _TOWER + _MARK in names else ""
    tower = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
    layers = {int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers.")}
    try:
        result = {new: tower[old] for old, new in _NAMES.items() if "post" not in old}
        for layer in sorted(layers):
            result |= _layer(tower, layer)
        result |= {new: tower[old] for old, new in _NAMES.items() if "post" in old}
    except KeyError as error:
        cure = "copy the weights again"
        refuse("CLIP image tower", expected="all tensors of the tower", got=f"no {start}{error.args[0]}", cure=cure)
    if _PROJECTION in weights:
        result["proj"] = weights[_PROJECTION].T.contiguous()
    return result


def _layer(tower: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
    result = {}
    for kind in ("weight", "bias"):
        parts = [tower[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
        result[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
        result |= {f"{new}{to}.{kind}": tower[f"{old}{name}.{kind}"] for name, to in _LAYERS.items()}
    return result
