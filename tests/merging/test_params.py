"""Blocks by the module tree that the names spell, for any network."""

import pytest
import torch
from torch import nn

from merging import merge
from merging.learned.layerwise import find_layers
from merging.params import partition
from tests.merging.learned.test_rows import layered


def blocks(*names):
    return {block: list(members) for block, members in partition(dict.fromkeys(names, torch.zeros(1)), "block").items()}


@pytest.mark.parametrize(
    ("network", "count", "some"),
    [
        ("resnet18", 10, ["stem", "layer1.0", "layer4.1", "top"]),
        ("vit_b_16", 14, ["stem", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", "top"]),
        ("convnext_tiny", 10, ["features.0", "features.7", "classifier.2"]),
        ("densenet121", 11, ["stem", "features.denseblock1", "features.transition3", "top"]),
        ("googlenet", 15, ["conv1", "inception3a", "inception4c", "top"]),
    ],
)
def test_networks_of_torchvision(network, count, some):
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        net = getattr(models, network)(**({"init_weights": False} if network == "googlenet" else {}))
    params = dict(net.named_parameters())
    found = partition(params, "block")
    assert len(found) == count
    assert set(some) <= set(found)
    assert sorted(name for members in found.values() for name in members) == sorted(params)
    first = [members[0] for members in found.values()]
    assert first == sorted(first, key=list(params).index), "in order of first appearance"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("transformer.resblocks.0.ln_1.weight transformer.resblocks.1.mlp.0.weight proj", "{p}0 {p}1 top"),
        ("wte.weight h.0.ln_1.weight h.0.mlp.w h.1.ln_1.weight ln_f.weight", "stem h.0 h.1 top"),
        ("shared.weight encoder.block.0.layer.0.q encoder.block.0.layer.1.wi", "stem encoder.block.0"),
        ("a.weight a.bias b.weight b.bias", "a b"),
        ("model.a.weight model.a.bias model.b.c.weight", "model.a model.b"),
        ("cls a.weight a.bias b.weight scale", "stem a b top"),
        ("only.weight only.bias bias", "only top"),
        ("0.weight 0.bias 2.weight 2.bias", "0 2"),
        ("net.0.0.weight net.0.0.bias net.0.2.weight", "net.0.0 net.0.2"),
        ("layers.0.q.weight layers.0.q.bias layers.0.k.weight", "layers.0.q layers.0.k"),
        ("block1.block1-0.f.w block2.block2-0.f.w block2.block2-1.f.w", "{q}1.block1-0 {q}2.block2-0 {q}2.block2-1"),
        ("conv1.weight bn1.weight layer1.0.conv1.weight layer1.1.conv1.weight fc.weight", "stem layer1.0 layer1.1 top"),
        ("prompts.0 prompts.1 a.weight b.weight", "prompts a b"),
    ],
)
def test_names_spell_the_module_tree(names, expected):
    assert list(blocks(*names.split())) == expected.format(p="transformer.resblocks.", q="block").split()


def test_one_module_is_one_block_and_so_are_two_tensors_without_a_number():
    assert blocks("weight", "bias") == {"top": ["weight", "bias"]}
    assert blocks("m.weight", "m.bias", "m.scale") == {"top": ["m.weight", "m.bias", "m.scale"]}
    assert blocks("first.weight", "second.weight") == {"top": ["first.weight", "second.weight"]}
    assert list(blocks("layers.3.weight", "layers.3.bias")) == ["layers.3"]


class Plain(nn.Module):
    """Two named modules, no number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def test_rows_that_need_layers_find_them_in_a_network_without_a_number():
    vectors, tasks = layered(network=Plain, move=("body", "head"))
    assert list(find_layers(vectors.base)) == ["body", "head"]
    found = merge("prodistill", vectors, tasks, examples=12, steps=3)
    assert len(found.history["loss"]) == 2 * 3
    learned = merge("symerge", vectors, tasks, examples=12, steps=2, init=0.0, learning_rate=1e-12)
    still = [name for name, value in learned.merged.items() if torch.allclose(value, vectors.base[name], atol=1e-9)]
    assert still == ["body.weight", "body.bias"], "the weights of the last layer adapt, no others"
