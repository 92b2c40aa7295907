"""CLIP of open_clip: scores equal the library's own, experts in every form, folders that it loads."""

import json
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from bounds.autodiff import differentiable
from bounds.types import InputError
from merging.models import open_network
from tests.merging.models.worlds import CLASSES, TEMPLATES, clip_config, followed, pictures, save_clip, shaken

CONFIG = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}


def made(folder, seed, preprocess=PREPROCESS, **changes) -> Any:
    """Save a small CLIP as open_clip's own folders are."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**CONFIG, **changes}, "preprocess_cfg": preprocess})
    )
    torch.manual_seed(seed)
    model = shaken(open_clip.create_model(f"local-dir:{folder}"), seed, 0.1)
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


def opened(path, **options) -> Any:
    return open_network("open_clip", path, options)


def library(folder) -> Any:
    return open_clip.create_model_and_transforms(f"local-dir:{folder}")


def library_scores(model, transform, images, template=TEMPLATES[0]):
    """What a user of open_clip computes."""
    tokens = open_clip.SimpleTokenizer(context_length=16)([template.format(name) for name in CLASSES])
    with torch.no_grad():
        image, text, scale = model(torch.stack([transform(picture) for picture in images]), tokens)
        return scale * image @ text.T


def close(scores, expected):
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max()), (scores - expected).abs().max()


@pytest.mark.parametrize("preprocess", [PREPROCESS, {}, {"resize_mode": "longest"}], ids=["squash", "plain", "longest"])
def test_scores_are_the_librarys(tmp_path, preprocess):
    made(tmp_path / "base", 0, preprocess)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'base'}")
    network = opened(tmp_path / "base")
    scores = network.forward(None, CLASSES, TEMPLATES[:1])(network.parameters, network.prepare(pictures()))
    close(scores, library_scores(model.eval(), transform, pictures()))


def saved_as(form, model, path):
    state = dict(model.state_dict())
    visual = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
    content = {
        "whole": state,
        "tower": visual,
        "wrapped": {f"model.visual.{n}": v for n, v in visual.items()},
        "image_encoder": {f"model.{n}": v for n, v in state.items()},
    }[form]
    torch.save(content, path)


@pytest.mark.parametrize("form", ["whole", "tower", "wrapped", "image_encoder"])
def test_an_expert_in_every_form(tmp_path, form):
    made(tmp_path / "base", 0)
    model = made(tmp_path / "expert", 1)
    base, _, transform = library(tmp_path / "base")
    saved_as(form, model, tmp_path / "expert.pt")
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert.pt")
    base.visual.load_state_dict(model.visual.state_dict())
    scores = network.forward(expert, CLASSES, TEMPLATES[:1])(expert.parameters, network.prepare(pictures()))
    close(scores, library_scores(base.eval(), transform, pictures()))
    assert any("not merged differ" in note for note in expert.notes) == (form in ("whole", "image_encoder"))


def test_a_tower_of_transformers_is_an_expert(tmp_path):
    made(tmp_path / "base", 0)
    tower = save_clip(tmp_path / "expert", 1, "CLIPVisionModel", config=clip_config(intermediate_size=64))
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    assert "no visual.proj: the base's" in expert.notes
    inputs = network.prepare(pictures())
    with torch.no_grad():
        pooled = tower(pixel_values=network.preprocessing.normalised(inputs, torch.float32)).pooler_output
        image = pooled @ network.parameters["visual.proj"]
    head = network.head(expert, CLASSES, TEMPLATES)
    expected = head.scale * image / image.norm(dim=1, keepdim=True) @ head.weights["head"].T
    close(network.classifier(head)(expert.parameters, inputs), expected)
    save_clip(tmp_path / "gelu", 1, "CLIPVisionModel", config=clip_config(hidden_act="gelu", intermediate_size=64))
    with pytest.raises(InputError, match=r"expected GELU.*got QuickGELU"):
        network.expert(tmp_path / "gelu")


def test_every_derivative_is_there(tmp_path):
    made(tmp_path / "base", 0)
    network = opened(tmp_path / "base", dtype="float64")
    theta, inputs = network.parameters, network.prepare(pictures())
    forward = network.forward(None, CLASSES, TEMPLATES)
    step = {name: torch.randn_like(value) for name, value in theta.items()}
    with differentiable():
        scores, moved, *_ = torch.func.jvp(lambda p: forward(p, inputs), (theta,), (step,))
        gradient = torch.func.vjp(lambda p: forward(p, inputs), theta)[1](torch.ones_like(scores))[0]
        assert moved.sum() == pytest.approx(sum((gradient[n] * step[n]).sum().item() for n in theta), rel=1e-6)
        assert torch.allclose(torch.vmap(lambda x: forward(theta, x[None])[0])(inputs), scores, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_written_folder_is_loaded_with_equal_scores(tmp_path, dtype, monkeypatch):
    made(tmp_path / "base", 0)
    made(tmp_path / "expert", 1)
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    merged = {n: (v + expert.parameters[n]) / 2 for n, v in network.parameters.items()}
    head = network.head(None, CLASSES, TEMPLATES[:1])
    network.write(merged, tmp_path / "out", {"animals": head}, dtype)
    assert {v.dtype for v in load_file(tmp_path / "out/open_clip_model.safetensors").values()} == {dtype}
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    scores = network.classifier(head)(merged, network.prepare(pictures()))
    found = library_scores(model.eval(), transform, pictures())
    if dtype == torch.float32:
        close(found, scores)
        close(followed(network, tmp_path / "out", monkeypatch, "animals", images=pictures())["scores"], scores)
    assert torch.allclose(found, scores, atol=0.1)
    again = opened(tmp_path / "out")
    assert again.preparation == network.preparation


def test_an_architecture_by_name(tmp_path, monkeypatch):
    """Names are open_clip's table; a small one is put into it, since the real ones have 150 million weights."""
    names = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(names, "ViT-B-32", {**CONFIG, "quick_gelu": False})
    monkeypatch.setitem(names, "ViT-B-32-quickgelu", CONFIG)
    made(tmp_path / "base", 0)
    file = tmp_path / "base" / "open_clip_model.safetensors"
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", pretrained=str(file))
    network = opened(file, architecture="ViT-B-32-quickgelu", pretrained="openai")
    scores = network.forward(None, CLASSES, TEMPLATES[:1])(network.parameters, network.prepare(pictures()))
    close(scores, library_scores(model.eval(), transform, pictures()))
    with pytest.raises(InputError, match=r"expected QuickGELU.*NAME-quickgelu"):
        opened(file, architecture="ViT-B-32", pretrained="openai")
    file.rename(tmp_path / "openai-vit.safetensors")
    with pytest.raises(InputError, match="expected QuickGELU"):
        opened(tmp_path / "openai-vit.safetensors", architecture="ViT-B-32")
    assert opened(tmp_path / "openai-vit.safetensors", architecture="ViT-B-32", pretrained="laion2b_e16").parameters
    mine = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-32"], "tagged", mine)
    shown = opened(tmp_path / "openai-vit.safetensors", architecture="ViT-B-32", pretrained="tagged").preprocessing
    assert (tuple(shown.mean), tuple(shown.std)) == (mine["mean"], mine["std"])
    assert "bilinear" in shown.rules
    with pytest.raises(InputError, match="a tag of ViT-B-32"):
        opened(tmp_path / "openai-vit.safetensors", architecture="ViT-B-32", pretrained="mine")
    with pytest.raises(InputError, match="one of open_clip's"):
        opened(tmp_path / "openai-vit.safetensors", architecture="ViT-Z")
    with pytest.raises(InputError, match="set architecture"):
        opened(tmp_path / "openai-vit.safetensors")
