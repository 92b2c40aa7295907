"""transformers' CLIP under open_clip's names: the same image features."""

from typing import Any

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from bounds.types import InputError
from merging.checkpoints import align, hf_clip_to_open_clip, is_hf_clip

VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 8,
    "patch_size": 4, "projection_dim": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


def tower() -> Any:
    vision: Any = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8}
    text: Any = {"context_length": 5, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
    return open_clip.CLIP(8, vision, text, quick_gelu=True).visual.eval()


def whole() -> Any:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text |= {"vocab_size": 20, "max_position_embeddings": 5, "projection_dim": 8}
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=8))


def stirred(model: Any) -> Any:
    """Random weights everywhere, so that no two layer norms or biases are alike."""
    for value in model.parameters():
        value.data = torch.randn_like(value) * 0.3
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whole", "projected"])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_image_features_are_equal(kind, prefix):
    model: Any = stirred(whole() if kind == "whole" else CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
    state = model.state_dict()
    if not prefix and kind == "projected":  # as version 5 names the bare tower
        state = {name.removeprefix("vision_model."): value for name, value in state.items()}
    assert is_hf_clip(state)
    visual, images = tower(), torch.randn(5, 3, 8, 8)
    found = hf_clip_to_open_clip(state)
    visual.load_state_dict(found, strict=True)
    if kind == "whole":
        features = model.visual_projection(model.vision_model(images).pooler_output)
    else:
        features = model(images).image_embeds
    assert float(features.abs().max()) > 0.1
    assert float((visual(images) - features).abs().max()) < 1e-6 * max(1.0, float(features.abs().max()))
    names = {name: value.shape for name, value in visual.named_parameters()}
    assert align(names, found, "x").renamed == ""


@torch.no_grad()
def test_a_tower_without_its_projection():
    model: Any = stirred(CLIPVisionModel(CLIPVisionConfig(**VISION)))
    found = hf_clip_to_open_clip(model.state_dict())
    visual, images = tower(), torch.randn(5, 3, 8, 8)
    assert set(visual.state_dict()) - set(found) == {"proj"}
    visual.load_state_dict(found, strict=False)
    visual.proj = None
    assert float((visual(images) - model(images).pooler_output).abs().max()) < 1e-5


def test_other_names_are_refused():
    state = tower().state_dict()
    assert not is_hf_clip(state)
    with pytest.raises(InputError, match=r"expected names of transformers' CLIP; got names such as"):
        hf_clip_to_open_clip(state)
    less = CLIPVisionModel(CLIPVisionConfig(**VISION)).state_dict()
    del less["encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(InputError, match=r"got no encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        hf_clip_to_open_clip(less)
