"""Suites made by a function of the user's."""

import sys

import pytest

from bounds.types import InputError
from merging import load_suite, merge
from merging.suites import made_of_files

MODULE = """
from merging.suites.toy import build

def with_storage(storage):
    return build(storage=storage, overlap=0.5)

def plain():
    return build()

def wrong():
    return 3

VALUE = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "mine_for_tests.py").write_text(MODULE)
    (tmp_path / "broken_for_tests.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine_for_tests", None)


def test_a_function_with_and_without_storage_and_what_the_artifact_says():
    for name in ("with_storage", "plain"):
        origin = f"mine_for_tests:{name}"
        suite = load_suite(origin)
        assert suite.origin == origin
        assert merge("average", suite).origin == origin
        assert not made_of_files(origin)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("mine_for_tests:wrong", r"expected a merging.suites.Suite; got a int"),
        ("mine_for_tests:VALUE", r"expected a function VALUE in it; got none"),
        ("mine_for_tests:none", r"expected a function none in it"),
        ("no_such_module:f", r"expected a module that can be imported; got ModuleNotFoundError: No module"),
        ("broken_for_tests:f", r"got ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        (
            "mini9",
            r"suite: expected mini8 or text8 or toy or clip-ta8 .*, a built folder, or package.*; got 'mini9'",
        ),
    ],
)
def test_what_is_refused(text, match):
    with pytest.raises(InputError, match=match):
        load_suite(text)
