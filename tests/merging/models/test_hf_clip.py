"""CLIP of transformers: scores equal logits_per_image, experts in every published form."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bounds.autodiff import differentiable
from bounds.types import InputError
from merging.models import open_network
from tests.merging.models.worlds import (
    CLASSES,
    TEMPLATES,
    clip_config,
    clip_processor,
    clip_tokenizer,
    followed,
    pictures,
    save_clip,
)


def opened(path, **options) -> Any:
    return open_network("hf_clip", path, options)


def library_scores(model, images, template=TEMPLATES[0]):
    """What a user of transformers computes: logits_per_image of one processor call."""
    texts = clip_tokenizer()([template.format(name) for name in CLASSES], padding=True, return_tensors="pt")
    pixels = clip_processor()(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=pixels)[0]


def with_tower(model, tower):
    """Put a published expert's tower into the base, as FusionBench does."""
    model.vision_model.load_state_dict(getattr(tower, "vision_model", tower).state_dict())
    return model


def close(scores, expected):
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max()), (scores - expected).abs().max()


@pytest.mark.parametrize("auto", ["CLIPVisionModel", "CLIPModel"])
def test_an_experts_scores_are_the_librarys(tmp_path, auto):
    base = save_clip(tmp_path / "base", 0)
    tower = save_clip(tmp_path / "expert", 1, auto)
    with torch.no_grad():
        if auto == "CLIPModel":
            tower.load_state_dict(
                {**base.state_dict(), **{f"vision_model.{n}": v for n, v in tower.vision_model.state_dict().items()}}
            )
            tower.save_pretrained(tmp_path / "expert")
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    assert expert.parameters.keys() == network.parameters.keys()
    assert all(name.startswith("vision_model.") for name in network.parameters)
    inputs = network.prepare(pictures())
    assert inputs.dtype == torch.uint8
    assert inputs.shape == (5, 3, 16, 16)
    scores = network.forward(expert, CLASSES, TEMPLATES[:1])(expert.parameters, inputs)
    close(network.forward(None, CLASSES, TEMPLATES[:1])(network.parameters, inputs), library_scores(base, pictures()))
    close(scores, library_scores(with_tower(base, tower), pictures()))


def test_names_of_before_transformers_5(tmp_path):
    save_clip(tmp_path / "base", 0)
    tower = save_clip(tmp_path / "expert", 1, "CLIPVisionModel")
    network = opened(tmp_path / "base")
    new = network.expert(tmp_path / "expert").parameters
    state = {f"vision_model.{name}": value for name, value in tower.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(state, tmp_path / "expert/model.safetensors")
    old = network.expert(tmp_path / "expert")
    assert all(torch.equal(value, new[name]) for name, value in old.parameters.items())
    assert old.notes == ()


def test_several_prompts_are_averaged_on_the_sphere(tmp_path):
    base = save_clip(tmp_path / "base", 0)
    network = opened(tmp_path / "base")
    head = network.head(None, CLASSES, TEMPLATES)
    tokens = [clip_tokenizer()([t.format(c) for t in TEMPLATES], padding=True, return_tensors="pt") for c in CLASSES]
    with torch.no_grad():
        rows = [
            base.text_projection(base.text_model(**{k: t[k] for k in ("input_ids", "attention_mask")})[1])
            for t in tokens
        ]
    units = torch.stack([(row / row.norm(dim=1, keepdim=True)).mean(0) for row in rows])
    assert torch.allclose(head.weights["head"], units / units.norm(dim=1, keepdim=True), atol=1e-6)
    assert head.scale == pytest.approx(base.logit_scale.exp().item())
    with pytest.raises(InputError, match="prompt with"):
        network.head(None, CLASSES, ["a photo"])
    with pytest.raises(InputError, match="class names"):
        network.head(None, [], [])


def test_every_derivative_is_there(tmp_path):
    save_clip(tmp_path / "base", 0)
    network = opened(tmp_path / "base", dtype="float64")
    theta, inputs = network.parameters, network.prepare(pictures())
    forward = network.forward(None, CLASSES, TEMPLATES)
    step = {name: torch.randn_like(value) for name, value in theta.items()}
    with differentiable():
        scores, moved, *_ = torch.func.jvp(lambda p: forward(p, inputs), (theta,), (step,))
        gradient = torch.func.vjp(lambda p: forward(p, inputs), theta)[1](torch.ones_like(scores))[0]
        assert moved.sum() == pytest.approx(sum((gradient[n] * step[n]).sum().item() for n in theta), rel=1e-6)
        assert torch.allclose(torch.vmap(lambda x: forward(theta, x[None])[0])(inputs), scores, atol=1e-10)


def test_a_projection_is_the_bases_or_merged(tmp_path):
    base = save_clip(tmp_path / "base", 0)
    expert_model = save_clip(tmp_path / "expert", 1)
    save_clip(tmp_path / "tower", 2, "CLIPVisionModel")
    with pytest.raises(InputError, match="projection: merged"):
        opened(tmp_path / "base").expert(tmp_path / "expert")
    network = opened(tmp_path / "base", projection="merged")
    expert = network.expert(tmp_path / "expert")
    assert "not merged differ" in " ".join(expert.notes)  # its text tower
    with_tower(base, expert_model).visual_projection.load_state_dict(expert_model.visual_projection.state_dict())
    close(
        network.forward(expert, CLASSES, TEMPLATES[:1])(expert.parameters, network.prepare(pictures())),
        library_scores(base, pictures()),
    )
    lent = network.expert(tmp_path / "tower")
    assert torch.equal(lent.parameters["visual_projection.weight"], network.parameters["visual_projection.weight"])
    assert "no visual_projection.weight: the base's" in lent.notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_written_folder_is_loaded_with_equal_scores(tmp_path, dtype, monkeypatch):
    save_clip(tmp_path / "base", 0)
    save_clip(tmp_path / "expert", 1, "CLIPVisionModel")
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    merged = {n: ((v + expert.parameters[n]) / 2).to(dtype).float() for n, v in network.parameters.items()}
    head = network.head(None, CLASSES, TEMPLATES[:1])
    network.write(merged, tmp_path / "out", {"animals": head}, dtype, shard_size="20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval().float()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == clip_tokenizer().get_vocab()
    again = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")
    assert again.to_dict() == clip_processor().to_dict()
    scores = network.classifier(head)(merged, network.prepare(pictures()))
    if dtype == torch.float32:
        close(library_scores(model, pictures()), scores)
        close(followed(network, tmp_path / "out", monkeypatch, "animals", images=pictures())["scores"], scores)
        assert torch.equal(load_file(tmp_path / "out/heads/animals.safetensors")["head"], head.weights["head"])
    else:
        assert torch.equal(model.vision_model.post_layernorm.weight, merged["vision_model.post_layernorm.weight"])


def test_pixels_of_every_form(tmp_path):
    save_clip(tmp_path / "base", 0)
    network = opened(tmp_path / "base")
    images = pictures()
    assert torch.equal(network.prepare([np.asarray(image) for image in images]), network.prepare(images))
    grey = np.asarray(images[0].convert("L"))
    assert torch.equal(network.prepare([grey])[0, 0], network.prepare([grey])[0, 2])
    floats = clip_processor()(images, return_tensors="pt")["pixel_values"]
    forward = network.forward(None, CLASSES)
    prepared = network.prepare(list(floats.numpy()))
    close(forward(network.parameters, prepared), forward(network.parameters, network.prepare(images)))
    for wrong in (
        ["cat.png"],
        [np.zeros((16, 16), dtype=np.float32)],
        [images[0], floats[0].numpy()],
        [np.zeros((3, 16, 16), dtype=np.uint8)],
        [],
    ):
        with pytest.raises(InputError, match="image"):
            network.prepare(wrong)


def test_wrong_folders_are_refused(tmp_path):
    save_clip(tmp_path / "bare", 0, extras=False)
    with pytest.raises(InputError, match="tokenizer"):
        opened(tmp_path / "bare")
    clip_tokenizer().save_pretrained(tmp_path / "bare")
    assert "at 16 pixels" in " ".join(opened(tmp_path / "bare").notes)
    save_clip(tmp_path / "tower", 0, "CLIPVisionModel")
    with pytest.raises(InputError, match="a model of type clip"):
        opened(tmp_path / "tower")
    save_clip(tmp_path / "other", 0, "CLIPVisionModel", config=clip_config(image_size=32))
    with pytest.raises(InputError, match=r"shape|missing"):
        opened(tmp_path / "bare").expert(tmp_path / "other")
