"""Classifiers of torchvision and timm: scores equal the libraries', batch normalisation included."""

import importlib
import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import torchvision.transforms as transforms
from safetensors.torch import load_file, save_file
from torchvision.transforms import _presets as presets
from torchvision.transforms import functional

from bounds.autodiff import differentiable
from bounds.types import InputError
from merging.models import open_network
from merging.models.vision import _build, _heads
from tests.merging.models.worlds import followed, pictures, shaken

TINY = {"size": 32, "resize": 40}
TORCHVISION = ["resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "densenet121"]
HEADS = {"vit_b_16": "heads.head", "swin_t": "head", "convnext_tiny": "classifier.2", "vgg11": "classifier.6",
         "efficientnet_b0": "classifier.1", "googlenet": "fc", "inception_v3": "fc", "alexnet": "classifier.6",
         "maxvit_t": "classifier.5", "mnasnet0_5": "classifier.1"}  # fmt: skip
TIMM = ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]


def made(source, name, classes, seed) -> Any:
    """A network near one that all seeds share, with the running statistics of some images."""
    torch.manual_seed(0)
    if source == "timm":
        model: Any = timm.create_model(name, num_classes=classes)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    shaken(model, seed, 0.003).train()
    for part in model.modules():
        part.momentum = 1.0  # of batch normalisation
    with torch.no_grad():
        side = 224 if "vit" in name else 64
        model(imagenet(pictures(), side, side))
    return model.eval()


def opened(path, architecture, **options) -> Any:
    return open_network("vision", path, {"architecture": architecture, **options})


def timm_data() -> Any:
    return importlib.import_module("timm.data")


def imagenet(images, size=224, resize=256):
    """torchvision's preset for ImageNet."""
    preset = presets.ImageClassification(crop_size=size, resize_size=resize)
    return torch.stack([preset(image) for image in images])


def close(scores, expected):
    assert scores.shape == expected.shape
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()  # a network that is not dead
    assert (scores - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max()), (scores - expected).abs().max()


@pytest.mark.parametrize("name", TORCHVISION)
def test_scores_are_torchvisions(tmp_path, name):
    torch.save(made("torchvision", name, 1000, 0).state_dict(), tmp_path / "base.pth")
    model = made("torchvision", name, 3, 1)
    torch.save(model.state_dict(), tmp_path / "expert.pth")
    network = opened(tmp_path / "base.pth", f"torchvision:{name}")
    assert len(network.own) in (1, 2)
    expert = network.expert(tmp_path / "expert.pth")
    assert expert.parameters.keys() == network.parameters.keys()
    images = pictures(2)
    with torch.no_grad():
        expected = model(imagenet(images))
    scores = network.forward(expert, ["a", "b", "c"])(expert.parameters, network.prepare(images))
    close(scores, expected)
    base = network.forward(None, [])(network.parameters, network.prepare(images))
    assert base.shape == (2, 1000)


@pytest.mark.filterwarnings("ignore:The default weight initialization")  # of two of torchvision's models
@pytest.mark.parametrize("name", HEADS)
def test_the_last_layer_is_found(name):
    with torch.device("meta"):
        assert _heads(_build("torchvision", name), "torchvision") == [HEADS[name]]


@pytest.mark.parametrize("name", TIMM)
def test_scores_are_timms(tmp_path, name, monkeypatch):
    torch.save(made("timm", name, 7, 0).state_dict(), tmp_path / "base.pth")
    model = made("timm", name, 3, 1)
    save_file(model.state_dict(), tmp_path / "expert.safetensors")
    network = opened(tmp_path / "base.pth", f"timm:{name}")
    expert = network.expert(tmp_path / "expert.safetensors")
    transform: Any = timm_data().create_transform(**timm_data().resolve_data_config({}, model=model), is_training=False)
    with torch.no_grad():
        expected = model(torch.stack([transform(image) for image in pictures(2)]))
    forward = network.forward(expert, ["a", "b", "c"])
    close(forward(expert.parameters, network.prepare(pictures(2))), expected)
    merged = {n: (v + expert.parameters[n]) / 2 for n, v in network.parameters.items()}
    head = network.head(expert, ["a", "b", "c"])
    network.write(merged, tmp_path / "out", {"letters": head})
    again = followed(network, tmp_path / "out", monkeypatch, "letters")["model"]
    with torch.no_grad():
        found = again(torch.stack([transform(image) for image in pictures(2)]))
    close(found, forward(merged, network.prepare(pictures(2))))
    reopened = open_network("vision", tmp_path / "out" / "letters", {})
    assert reopened.head(None, []).class_names == ("a", "b", "c")
    assert reopened.preparation == network.preparation


def test_experts_of_several_classes_merge_and_are_written(tmp_path, monkeypatch):
    torch.save(made("torchvision", "resnet18", 10, 0).state_dict(), tmp_path / "base.pth")
    for index, classes in enumerate((2, 4)):
        torch.save(made("torchvision", "resnet18", classes, index + 1).state_dict(), tmp_path / f"{classes}.pth")
    network = opened(tmp_path / "base.pth", "torchvision:resnet18", **TINY)
    experts = {f"t{classes}": network.expert(tmp_path / f"{classes}.pth") for classes in (2, 4)}
    assert "layer1.0.bn1.running_log_variance" in network.parameters
    merged = {n: sum(e.parameters[n] for e in experts.values()) / 2 for n in network.parameters}
    heads = {task: network.head(expert, []) for task, expert in experts.items()}
    files = network.write(merged, tmp_path / "out", heads)
    assert [str(file.relative_to(tmp_path / "out")) for file in files] == [
        "t2/model.safetensors",
        "t4/model.safetensors",
    ]
    for task, head in heads.items():
        again = torchvision.models.resnet18(num_classes=int(task[1]))
        again.load_state_dict(load_file(tmp_path / "out" / task / "model.safetensors"))
        with torch.no_grad():
            expected = again.eval()(imagenet(pictures(), 32, 40))
        close(network.classifier(head)(merged, network.prepare(pictures())), expected)
        model = followed(network, tmp_path / "out", monkeypatch, task)["model"]
        assert torch.equal(model(imagenet(pictures(), 32, 40)), expected)
    state = load_file(tmp_path / "out/t2/model.safetensors")
    assert state["bn1.num_batches_tracked"].dtype == torch.int64
    network.write(merged, tmp_path / "once", heads, torch.bfloat16, per_task=False)
    names = sorted(str(p.relative_to(tmp_path / "once")) for p in (tmp_path / "once").rglob("*.safetensors"))
    assert names == ["heads/t2.safetensors", "heads/t4.safetensors", "model.safetensors"]
    once = load_file(tmp_path / "once/model.safetensors") | load_file(tmp_path / "once/heads/t4.safetensors")
    model = followed(network, tmp_path / "once", monkeypatch, "t4", per_task=False)["model"]
    assert torch.equal(model.fc.weight, once["fc.weight"].float())


def test_every_derivative_is_there(tmp_path):
    torch.save(made("torchvision", "resnet18", 3, 0).state_dict(), tmp_path / "base.pth")
    network = opened(tmp_path / "base.pth", "torchvision:resnet18", dtype="float64", **TINY)
    theta, inputs, forward = network.parameters, network.prepare(pictures(3)), network.forward(None, [])
    step = {name: 0.1 * torch.randn_like(value) for name, value in theta.items()}
    with differentiable():
        scores, moved, *_ = torch.func.jvp(lambda p: forward(p, inputs), (theta,), (step,))
        gradient = torch.func.vjp(lambda p: forward(p, inputs), theta)[1](torch.ones_like(scores))[0]
        assert moved.sum() == pytest.approx(sum((gradient[n] * step[n]).sum().item() for n in theta), rel=1e-6)
        assert gradient["bn1.running_log_variance"].abs().max() > 0
        assert torch.allclose(torch.vmap(lambda x: forward(theta, x[None])[0])(inputs), scores, atol=1e-9)


def test_preprocessing_follows_the_options(tmp_path):
    torch.save(made("torchvision", "resnet18", 3, 0).state_dict(), tmp_path / "base.pth")
    mine = {"size": 24, "resize": 24, "interpolation": "nearest", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    network = opened(tmp_path / "base.pth", "torchvision:resnet18", **mine)
    image = pictures()[2]
    modes = transforms.InterpolationMode
    shaped = functional.resize(image, [24], modes.NEAREST)
    pixels = np.array(functional.center_crop(shaped, [24, 24]))
    prepared = network.prepare([image])
    assert np.array_equal(prepared[0].permute(1, 2, 0), pixels)
    values = network.preprocessing.normalised(prepared, torch.float32)[0, :, 3, 4]
    assert values.tolist() == pytest.approx(((pixels[3, 4] / 255 - [0.1, 0.2, 0.3]) / 0.5).tolist(), abs=1e-6)
    assert network.preparation != opened(tmp_path / "base.pth", "torchvision:resnet18").preparation


def test_what_timm_says_of_an_architecture_may_be_changed(tmp_path):
    torch.save(made("timm", "resnet10t", 3, 0).state_dict(), tmp_path / "base.pth")
    image = pictures()[2]
    own, nearest = (opened(tmp_path / "base.pth", "timm:resnet10t", **o) for o in ({}, {"interpolation": "nearest"}))
    config = {**timm_data().resolve_data_config({}, model=own.module), "interpolation": "nearest"}
    expected = timm_data().create_transform(**config, is_training=False)(image)
    found = nearest.preprocessing.normalised(nearest.prepare([image]), torch.float32)[0]
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.equal(own.prepare([image]), nearest.prepare([image]))
    assert own.preparation != nearest.preparation
    palette = image.convert("P")
    assert torch.equal(own.prepare([palette]), own.prepare([palette.convert("RGB")]))


@pytest.mark.parametrize(("size", "resize"), [(32, 40), (48, 49), (33, 57)])
def test_a_written_folder_of_timm_prepares_images_as_the_suite_did(tmp_path, size, resize):
    base = tmp_path / "base.pth"
    torch.save(made("timm", "resnet10t", 4, 0).state_dict(), base)
    ours = opened(
        base, "timm:resnet10t", size=size, resize=resize, interpolation="nearest", mean=[0.5] * 3, std=[0.3] * 3
    )
    ours.write(ours.parameters, tmp_path / "out", {"letters": ours.head(ours.expert(base), list("abcd"))})
    model = timm.create_model(f"local-dir:{tmp_path / 'out' / 'letters'}", pretrained=True)
    said = timm_data().create_transform(**timm_data().resolve_model_data_config(model), is_training=False)
    theirs = torch.stack([said(image.convert("RGB")) for image in pictures()])
    pixels = ours.prepare(pictures()).float() / 255
    torch.testing.assert_close((pixels - 0.5) / 0.3, theirs, rtol=1e-5, atol=1e-5)


def test_wrong_descriptions_are_refused(tmp_path):
    torch.save(made("torchvision", "resnet18", 3, 0).state_dict(), tmp_path / "base.pth")
    for architecture, message in [
        ("", "torchvision:NAME"),
        ("resnet18", "torchvision:NAME"),
        ("torchvision:resnet19", "a name of torchvision"),
        ("timm:resnet19", "a name of timm"),
        ("torchvision:resnet34", "missing"),
    ]:
        with pytest.raises(InputError, match=message):
            opened(tmp_path / "base.pth", architecture)
    with pytest.raises(InputError, match="name of a module"):
        opened(tmp_path / "base.pth", "torchvision:resnet18", head="classifier")
    with pytest.raises(InputError, match="three numbers"):
        opened(tmp_path / "base.pth", "torchvision:resnet18", mean=(0.5,))
    with pytest.raises(InputError, match="interpolation"):
        opened(tmp_path / "base.pth", "torchvision:resnet18", interpolation="cubic")
    network = opened(tmp_path / "base.pth", "torchvision:resnet18", **TINY)
    head = network.head(None, ["a", "b", "c"])
    for task in ("../up", "heads", ""):
        with pytest.raises(InputError, match="a name that a folder can have"):
            network.write(network.parameters, tmp_path / "out", {task: head})
    huge = {**network.parameters, "conv1.weight": network.parameters["conv1.weight"] * 1e7}
    with pytest.raises(InputError, match="the range of"):
        network.write(huge, tmp_path / "out", {"t": head}, torch.float16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.pth"]


def test_a_folder_of_timm_names_its_architecture(tmp_path):
    model = made("timm", "resnet10t", 3, 0)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 3}))
    save_file(model.state_dict(), tmp_path / "base/model.safetensors")
    network: Any = open_network("vision", tmp_path / "base", {})
    assert (network.library, network.name) == ("timm", "resnet10t")
