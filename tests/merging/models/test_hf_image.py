"""Image classifiers of transformers: scores equal the library's, folders that it loads."""

from typing import Any

import pytest
import torch
import transformers

from bounds.types import InputError
from merging.models import open_network
from tests.merging.models.worlds import SMALL, followed, pictures, shaken

NAMES = ["cat", "dog", "car"]
THREE = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}


def config(kind, **keywords) -> Any:
    if kind == "vit":
        return transformers.ViTConfig(**SMALL, image_size=16, patch_size=8, **keywords)
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **keywords
    )


def saved(folder, kind, seed, auto="AutoModelForImageClassification", **keywords) -> Any:
    torch.manual_seed(0)
    model = shaken(getattr(transformers, auto).from_config(config(kind, **keywords)), seed, 0.1)
    model.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=side, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return model


def close(scores, expected):
    assert scores.shape == expected.shape
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert (scores - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max())


@pytest.mark.parametrize("per_task", [True, False])
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_scores_are_the_librarys_before_and_after(tmp_path, kind, bare, per_task, monkeypatch):
    saved(tmp_path / "base", kind, 0, *(["AutoModel"] if bare and kind == "resnet" else []))
    model = saved(tmp_path / "expert", kind, 1, **THREE)
    network: Any = open_network("hf_image", tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    assert expert.class_names == tuple(NAMES)
    assert ("resnet.embedder.embedder.normalization.running_mean" in network.parameters) == (kind == "resnet")
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "expert")
    with torch.no_grad():
        expected = model(**processor(pictures(), return_tensors="pt")).logits
    head = network.head(expert, [])
    close(network.classifier(head)(expert.parameters, network.prepare(pictures())), expected)
    network.write(expert.parameters, tmp_path / "out", {"animals": head}, per_task=per_task)
    found = followed(network, tmp_path / "out", monkeypatch, "animals", per_task=per_task, images=pictures())
    close(found["scores"], expected)


def test_wrong_folders_are_refused(tmp_path):
    model = saved(tmp_path / "base", "vit", 0)
    saved(tmp_path / "resnet", "resnet", 0)
    with pytest.raises(InputError, match="a model of type vit"):
        open_network("hf_image", tmp_path / "base").expert(tmp_path / "resnet")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="preprocess"):
        open_network("hf_image", tmp_path / "bare")
    (tmp_path / "base/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="AutoModelForImageClassification loads"):
        open_network("hf_image", tmp_path / "base")
