"""Parameters that are merged, heads, and what is frozen, in one module."""

import pytest
import torch
from torch import nn

from bounds.autodiff import functional
from bounds.types import InputError
from merging.models.modules import freeze, move_buffers, named_as


def test_what_is_frozen_is_no_entry_of_theta_and_stays_in_the_state():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    freeze(module, lambda name: name.startswith("1."))
    forward, theta = functional(module)
    assert list(theta) == ["0.weight", "0.bias"]
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    x = torch.randn(4, 3)
    expected = (x @ state["0.weight"].T + state["0.bias"]) @ state["1.weight"].T + state["1.bias"]
    assert torch.allclose(forward(theta, x), expected, atol=1e-6)


def test_tied_parameters_are_frozen_together():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    with pytest.raises(InputError, match=r"0.weight and 1.weight.*all merged or all frozen"):
        freeze(module, lambda name: name == "1.weight")


def test_names_of_a_file_are_found_behind_any_prefix():
    tensors = {name: torch.tensor(float(i)) for i, name in enumerate(["a.fc.weight", "model.block.fc.weight", "bias"])}
    found = named_as(["fc.weight", "fc.bias", "other.weight"], tensors)
    assert {name: int(value) for name, value in found.items()} == {"fc.weight": 0, "fc.bias": 2}
    assert int(named_as(["fc.weight"], tensors | {"fc.weight": torch.tensor(9)})["fc.weight"]) == 9


def test_buffers_follow_the_inputs():
    module = nn.BatchNorm1d(3)
    move_buffers(module, torch.device("meta"))
    assert {value.device.type for value in module.buffers()} == {"meta"}
    assert {value.device.type for value in module.parameters()} == {"cpu"}
