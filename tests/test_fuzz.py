"""Damaged files of every kind are refused or read as they were written; the fuzzing finds readers that are wrong."""

import pytest

from merging import records
from tests import fuzz

FILES = 576
"""Twelve of every kind of file and of damage."""


@pytest.fixture(scope="module")
def found():
    return fuzz.fuzz(FILES, seed=0)


def test_no_damaged_file_gives_a_traceback_or_other_content(found):
    assert [f for f in found if f.outcome in fuzz.FAULTS] == []


def test_every_kind_of_file_meets_every_kind_of_damage(found):
    pairs = {(f.kind, f.damage) for f in found}
    assert len(pairs) == 8 * len(fuzz.DAMAGES)
    assert len(found) == FILES >= 500
    assert {f.outcome for f in found if f.damage == "forge"} <= {fuzz.REFUSED, fuzz.ABSENT}


def test_readers_that_check_no_digest_are_found(monkeypatch):
    monkeypatch.setattr(records, "unseal", lambda content, schema, what, cure: _without(content))
    assert {f.outcome for f in fuzz.fuzz(96, seed=0)} >= {fuzz.CHANGED, fuzz.REFUSED}


def test_readers_that_check_no_types_are_found(monkeypatch):
    monkeypatch.setattr("merging.artifact.checked", lambda kind, value, what, cure: kind(**value))
    seen = {f.outcome for f in fuzz.fuzz(480, seed=0) if (f.kind, f.damage) == ("artifact", "forge")}
    assert seen & set(fuzz.FAULTS)


def _without(content):
    return {name: value for name, value in content.items() if name != records.DIGEST}


def test_the_command_names_faults_and_ends_with_status_one(monkeypatch, capsys):
    assert fuzz.main(["--files", "16"]) == 0
    monkeypatch.setattr(records, "unseal", lambda content, schema, what, cure: _without(content))
    assert fuzz.main(["--files", "96"]) == 1
    assert "changed" in capsys.readouterr().out
