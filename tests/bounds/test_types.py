"""The cure for a name that is nearly right."""

import pytest

from bounds.types import meant

KNOWN = ("samerging", "task_arithmetic", "ties", "tsv_m", "adamerging++")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("samergin", "samerging"),
        ("SAMerging", "samerging"),
        ("task-arithmetic", "task_arithmetic"),
        ("TaskArithmetic", "task_arithmetic"),
        ("tie", "ties"),
        ("tsvm", "tsv_m"),
        ("adamerging", "adamerging++"),
    ],
)
def test_the_nearest_name_is_named(name, near):
    assert meant(name, KNOWN) == f"did you mean {near}?"


@pytest.mark.parametrize("name", ["", "x", "resnet50"])
def test_where_none_is_near_the_cure_is_said(name):
    assert meant(name, KNOWN, "see the list") == "see the list"
    assert meant(name, (), "see the list") == "see the list"
