"""Options of kinds and class names, checked once for all of them."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from bounds.types import InputError
from merging.models.base import TaskHead, chosen, fitting
from merging.models.writing import save_heads


@dataclass(frozen=True, kw_only=True)
class Options:
    factory: str
    length: int = 3
    patterns: tuple[str, ...] = ()


def test_options_are_defaults_and_what_is_given():
    assert chosen(Options, {"factory": "a:b", "patterns": ["x"]}) == Options(factory="a:b", patterns=("x",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "factory"),
        ({"factory": "a:b", "lenght": 2}, "model, lenght: expected factory or length or patterns"),
        ({"factory": "a:b", "length": True}, "length"),
        ({"factory": 3}, "factory"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(InputError, match=message):
        chosen(Options, given)


def test_class_names_are_those_given_the_heads_or_numbers():
    assert fitting(["a", "b"], ["x", "y"], 2) == ("a", "b")
    assert fitting([], ["x", "y"], 2) == ("x", "y")
    assert fitting([], None, 2) == ("0", "1")
    with pytest.raises(InputError, match="one per output"):
        fitting(["a"], None, 2)
    with pytest.raises(InputError, match="in that order"):
        fitting(["y", "x"], ["x", "y"], 2)


def test_heads_of_tasks_with_dots_are_files_of_their_own(tmp_path):
    heads = {name: TaskHead({"w": torch.full((2,), float(i))}, ("a", "b")) for i, name in enumerate(("v.one", "v.two"))}
    save_heads(tmp_path, heads, torch.float32)
    for index, name in enumerate(heads):
        assert load_file(tmp_path / "heads" / f"{name}.safetensors")["w"].tolist() == [float(index)] * 2
    with pytest.raises(InputError, match="a name that a folder can have"):
        save_heads(tmp_path, {"a/b": heads["v.one"]}, torch.float32)
