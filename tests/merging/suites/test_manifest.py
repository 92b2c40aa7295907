"""A folder that is not what its manifest says is refused in one line."""

import hashlib
import json

import pytest

from bounds.types import InputError
from merging.suites.manifest import read_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "data").write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    (tmp_path / "manifest.json").write_text(
        json.dumps({"schema": "mergebound.mine/1", "sha256": {"part/data": digest}})
    )
    return tmp_path


def test_a_whole_folder_is_read(folder):
    assert read_manifest(folder, "mergebound.mine/1")["schema"] == "mergebound.mine/1"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "part" / "data").write_bytes(b"Data"),
            r"^suite mine, part/data: expected sha256 .*; got \w{12}; ",
        ),
        (
            lambda f: (f / "part" / "data").unlink(),
            "suite mine, part/data: .* got nothing there; install the package again",
        ),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: expected the suite's manifest; got nothing there"),
        (lambda f: (f / "manifest.json").write_text("{"), "got JSONDecodeError in it"),
        (lambda f: (f / "manifest.json").write_text("{}"), "got KeyError in it"),
        (lambda f: (f / "manifest.json").write_text('{"schema": "other/1", "sha256": {}}'), "got 'other/1'"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_manifest(folder, "mergebound.mine/1")
    assert "\n" not in str(caught.value)
