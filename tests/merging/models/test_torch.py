"""Any module: θ is all but the head that patterns name; tied weights and statistics come back as they went."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bounds.types import InputError
from merging.models import open_network
from tests.merging.models.worlds import followed, shaken

HERE = "tests.merging.models.test_torch"


class Small(nn.Module):
    """Two tied layers, batch normalisation and a head that may be of any size."""

    def __init__(self, classes=2):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()))


class Pairs(nn.Module):
    """Takes a mapping, returns a pair."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, left, right):
        return self.head(self.body(left - right)), None


def make():
    torch.manual_seed(0)
    return shaken(Small(), 0)


def make_pairs():
    torch.manual_seed(0)
    return Pairs()


def first(module, inputs):
    return module(**inputs)[0]


def doubled(examples):
    return torch.tensor(examples) * 2.0


def text():
    return "no module"


def opened(base="", factory="make", **options) -> Any:
    return open_network("torch", base, {"factory": f"{HERE}:{factory}", **options})


def test_an_experts_scores_are_its_modules(tmp_path, monkeypatch):
    network = opened(head=["head.*"])
    assert list(network.parameters) == [
        "first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_log_variance",
        "second.bias",
    ]  # fmt: skip
    model = shaken(Small(5), 3)
    torch.save(model.state_dict(), tmp_path / "expert.pt")
    expert = network.expert(tmp_path / "expert.pt")
    x = torch.randn(7, 6)
    head = network.head(expert, list("abcde"))
    with torch.no_grad():
        expected = model(x)
        base = make()(x)
    assert torch.allclose(network.classifier(head)(expert.parameters, x), expected, atol=1e-6)
    assert torch.allclose(network.forward(None, ["a", "b"])(network.parameters, x), base, atol=1e-6)
    network.write(expert.parameters, tmp_path / "out", {"task": head})
    again = Small(5)
    state = load_file(tmp_path / "out/task/model.safetensors")
    assert state.keys() == model.state_dict().keys()
    again.load_state_dict(state)
    assert torch.allclose(again.eval()(x), expected, atol=1e-6)
    made = opened(factory="five", head=["head.*"])
    assert torch.allclose(followed(made, tmp_path / "out", monkeypatch, "task")["model"](x), expected, atol=1e-6)
    reopened = opened(tmp_path / "out/task/model.safetensors", factory="five", head=["head.*"])
    assert torch.allclose(reopened.forward(None, [])(reopened.parameters, x), expected, atol=1e-6)


def five():
    return Small(5)


def test_own_functions_run_and_prepare(tmp_path):
    network = opened(factory="make_pairs", head=["head.*"], apply=f"{HERE}:first", prepare=f"{HERE}:doubled")
    inputs = {"left": torch.randn(3, 4), "right": torch.randn(3, 4)}
    module = make_pairs()
    head = {"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)}
    torch.save({**module.state_dict(), **head}, tmp_path / "expert.pt")
    scores = network.forward(network.expert(tmp_path / "expert.pt"), list("abc"))(network.parameters, inputs)
    body = module.body(inputs["left"] - inputs["right"])
    assert torch.allclose(scores, body @ head["head.weight"].T + head["head.bias"], atol=1e-6)
    assert torch.equal(network.prepare([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]))
    assert network.preparation != opened(factory="make_pairs").preparation


def test_arrays_are_stacked():
    network = opened()
    rows = [torch.zeros(6), torch.ones(6)]
    assert torch.equal(network.prepare([row.numpy() for row in rows]), torch.stack(rows))
    mapped = network.prepare([{"a": row, "b": row + 1} for row in rows])
    assert torch.equal(mapped["b"], torch.stack(rows) + 1)
    for wrong in (["text"], [torch.zeros(2), torch.zeros(3)], []):
        with pytest.raises(InputError, match="set prepare"):
            network.prepare(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "nothing"}, "expected (a function nothing in it|package.module:function)"),
        ({"factory": "text"}, "returns an nn.Module"),
        ({"head": ["fc.*"]}, "names of parameters"),
        ({"head": ["first.weight"]}, "all merged or all frozen"),
        ({"head": ["norm.*"]}, "no running statistics in a head"),
        ({"apply": "here"}, "expected (a function nothing in it|package.module:function)"),
    ],
)
def test_wrong_descriptions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        opened(**options)
