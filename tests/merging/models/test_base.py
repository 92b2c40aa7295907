"""Options of kinds and class names, checked once for all of them."""

from dataclasses import dataclass

import pytest

from bounds.types import InputError
from merging.models.base import chosen, fitting


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
