"""A suite is found by the folder that a build made; other folders are refused in one line."""

import json

import pytest

from bounds.types import InputError
from merging import suites
from merging.suites import mini8
from merging.task_vectors import Storage


def test_a_folder_is_loaded_by_the_suite_of_its_schema(tmp_path, monkeypatch):
    given = []

    def load(folder, storage):
        given.append((folder, storage))
        return suites.load("toy")

    monkeypatch.setattr(mini8, "load", load)
    (tmp_path / "manifest.json").write_text('{"schema": "mergebound.mini8/1"}')
    storage = Storage()
    found = suites.load(tmp_path, storage)
    assert given == [(tmp_path, storage)]
    assert found.origin == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "JSONDecodeError in it"),
        ("[]", "TypeError in it"),
        ("{}", "KeyError in it"),
        (json.dumps({"schema": "mergebound.toy/1"}), "mergebound.toy/1"),
        (json.dumps({"schema": "mergebound.base/1"}), "mergebound.base/1"),
        (json.dumps({"schema": "others"}), "others"),
    ],
)
def test_a_manifest_of_nothing_known_is_refused(tmp_path, text, got):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=f"expected a shipped suite's manifest; got {got}; name a folder"):
        suites.load(tmp_path)


def test_a_folder_without_a_manifest_is_no_suite(tmp_path):
    with pytest.raises(InputError, match="a built folder"):
        suites.load(tmp_path)
