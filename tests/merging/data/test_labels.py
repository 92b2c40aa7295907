"""Labels as they stand in files become class numbers, or one line says which row is none."""

import math

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging.data import Source
from merging.data.labels import class_numbers


def numbers(values, classes=None, names=None, renamed=False):
    source = Source(path="a.csv", classes=classes, renamed=renamed)
    labels, found = class_numbers(values, source, names, lambda row: f"data a.csv, line {row + 2}")
    assert labels.dtype == torch.int64
    return labels.tolist(), found


@pytest.mark.parametrize(
    "values", [[2, 0, 1], ["2", "0", "1"], [*np.array([2, 0, 1], np.uint8)], [*torch.tensor([[2], [0], [1]])]]
)
def test_numbers_stay_as_they_are(values):
    assert numbers(values) == ([2, 0, 1], None)
    assert numbers(values, classes=("a", "b", "c")) == ([2, 0, 1], ("a", "b", "c"))


def test_truth_values_are_numbers():
    assert numbers([True, False]) == ([1, 0], None)


def test_names_are_numbered_by_the_alphabet_or_as_the_user_says():
    assert numbers(["spam", "ham", "spam"]) == ([1, 0, 1], ("ham", "spam"))
    assert numbers(["spam", "ham", "spam"], classes=("spam", "ham")) == ([0, 1, 0], ("spam", "ham"))
    assert numbers(["spam"], classes=("spam", "ham")) == ([0], ("spam", "ham"))


def test_numbers_that_are_names_of_classes_are_names():
    assert numbers(["1", "2"], classes=("2", "1")) == ([1, 0], ("2", "1"))
    assert numbers(["1.5", "nan"], classes=("nan", "1.5")) == ([1, 0], ("nan", "1.5"))


def test_the_users_classes_reorder_or_rename_those_of_the_data():
    own = ("negative", "positive")
    assert numbers([0, 1, 1], names=own) == ([0, 1, 1], own)
    assert numbers([0, 1, 1], ("positive", "negative"), own) == ([1, 0, 0], ("positive", "negative"))
    assert numbers([0, 1, 2], (*"bca",), (*"abc",)) == ([2, 0, 1], (*"bca",))
    assert numbers([0, 1, 1], ("bad", "good"), own) == ([0, 1, 1], ("bad", "good"))
    with pytest.raises(InputError, match="negative, positive in any order, or as many other names; got negative, good"):
        numbers([0, 1, 1], ("negative", "good"), own)
    with pytest.raises(InputError, match="as many other names"):
        numbers([0, 1, 1], ("bad", "fair", "good"), own)


def test_renamed_classes_keep_the_numbers_whatever_the_data_calls_them():
    for names in (("negative", "positive"), ("positive", "negative")):
        assert numbers([0, 1, 1], ("negative", "good"), names, renamed=True) == ([0, 1, 1], ("negative", "good"))
    assert numbers([0, 1], ("b", "a"), ("a", "b"), renamed=True) == ([0, 1], ("b", "a"))
    with pytest.raises(InputError, match="as many other names"):
        numbers([0, 1], ("bad", "fair", "good"), ("bad", "good"), renamed=True)


BAD = {
    "missing": ([0, None], None, "line 3: expected a label; got nothing"),
    "nan": ([0.0, math.nan], None, "line 2: expected a class number or name; got the fraction 0.0"),
    "nan first": ([math.nan, 0.0], None, "line 2: expected a label; got nan"),
    "fraction": ([0, 0.5], None, "line 3: .* got the fraction 0.5"),
    "empty text": (["a", ""], None, "line 3: expected a label; got nothing"),
    "nan text": (["0", "NaN"], None, "line 3: expected a label; got 'NaN'"),
    "fraction text": (["0", "1.0"], None, "line 3: .* got the fraction 1.0"),
    "exponent": (["0", "1e3"], None, "line 3: .* got the fraction 1e3"),
    "negative": ([0, -1], None, r"line 3: expected a class number >= 0; got -1; .*label: null"),
    "huge": ([0, 2**40], None, "line 3: expected a class number >= 0"),
    "out of range": (["0", "2"], ("a", "b"), r"line 3: expected a label in 0\.\.1; got 2"),
    "unknown name": (["a", "c"], ("a", "b"), "line 3: expected one of the classes a, b; got 'c'"),
    "number among names": (["a", 1, "b"], None, "line 3: expected labels of one kind, numbers or names; got 1"),
    "name among numbers": ([0, 1, "b"], None, "line 4: .* got 'b'"),
    "name after a class like a fraction": (["1.5", "x"], ("1.5", "y"), "line 3: expected one of the classes 1.5, y"),
    "number text among classes": (["a", "1"], ("a", "b"), "line 3: .* got '1'"),
    "one-hot": ([np.array([0, 1])], None, "line 2: expected one label; got 2 numbers"),
    "list": ([[0]], None, "line 2: .* got a list"),
}


@pytest.mark.parametrize(("values", "classes", "message"), BAD.values(), ids=BAD)
def test_what_is_no_label_is_refused_with_its_row(values, classes, message):
    with pytest.raises(InputError, match=message) as found:
        numbers(values, classes)
    assert "\n" not in str(found.value)
