"""A stage is made once, again after a kill or damage, and under another key when what it is made of is another."""

import pytest

from bounds.types import InputError
from merging.suites.stages import Stages


def stage(folder, made_of, log, content=b"content"):
    """One stage that notes that it was made."""

    def make(path):
        log.append(made_of)
        path.write_bytes(content)

    return Stages(folder).file("one.bin", made_of, make)


def test_a_stage_is_made_once_for_what_it_is_made_of(tmp_path, capsys):
    log = []
    first = stage(tmp_path / "new" / "work", {"seed": 0, "rate": 0.1}, log)
    assert first.read_bytes() == b"content"
    assert first.suffix == ".bin"
    assert stage(tmp_path / "new" / "work", {"rate": 0.1, "seed": 0}, log) == first
    assert len(log) == 1
    other = stage(tmp_path / "new" / "work", {"seed": 1, "rate": 0.1}, log, b"other")
    assert other != first
    assert (first.read_bytes(), other.read_bytes()) == (b"content", b"other")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("one.bin …") == 2
    assert "one.bin done in" in said.err


def test_a_damaged_stage_or_record_is_made_again(tmp_path):
    log = []
    path = stage(tmp_path, {"seed": 0}, log)
    record = path.with_name(f"{path.name}.made_of.json")
    for damage in (
        lambda: path.write_bytes(b"conten"),
        lambda: path.write_bytes(b"Content"),
        path.unlink,
        record.unlink,
        lambda: record.write_text("{"),
        lambda: record.write_text("[]"),
    ):
        damage()
        made = len(log)
        assert stage(tmp_path, {"seed": 0}, log).read_bytes() == b"content"
        assert len(log) == made + 1


def test_a_stage_that_ends_in_between_leaves_nothing(tmp_path):
    def killed(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).file("one.bin", {}, killed)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="work folder"):
        Stages(tmp_path / "file")
