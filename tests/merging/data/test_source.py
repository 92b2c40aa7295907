"""Contradictions in what a user says of a data set: one line each."""

import pytest
from pydantic import TypeAdapter, ValidationError

from bounds.types import InputError
from merging.data import Source

BAD = {
    "neither": ({}, "either path or dataset; got neither"),
    "both": ({"path": "a.csv", "dataset": "glue"}, "got both"),
    "config": ({"path": "a.csv", "config": "sst2"}, "config beside dataset only"),
    "format": ({"dataset": "glue", "format": "csv"}, "format beside path only"),
    "text and image": ({"path": "a.csv", "text": "t", "image": "i"}, "either text or image"),
    "three": ({"path": "a.csv", "text": ("a", "b", "c")}, "a column or a pair"),
    "same pair": ({"path": "a.csv", "text": ("a", "a")}, "'a' in two"),
    "label is text": ({"path": "a.csv", "text": "label"}, "'label' in two"),
    "empty text": ({"path": "a.csv", "text": ""}, "a column or a pair"),
    "empty split": ({"path": "a.csv", "split": ""}, "an empty one"),
    "no classes": ({"path": "a.csv", "classes": ()}, "distinct class names; got none"),
    "class twice": ({"path": "a.csv", "classes": ("x", "y", "x")}, "'x' more than once"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_contradictions_are_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as found:
        Source(**given)
    assert "\n" not in str(found.value)


def test_the_list_of_a_suite_file_becomes_a_pair():
    source = TypeAdapter(Source).validate_python({"path": "a.csv", "text": ["a", "b"], "classes": ["x", "y"]})
    assert source == Source(path="a.csv", text=("a", "b"), classes=("x", "y"))
    assert source.texts == ("a", "b")
    assert Source(path="a.csv", text="a").texts == ("a",)
    with pytest.raises(ValidationError, match="either path or dataset"):
        TypeAdapter(Source).validate_python({"path": "a.csv", "dataset": "glue"})
