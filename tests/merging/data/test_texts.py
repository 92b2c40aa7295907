"""Text files: packed or not, marked or not, with the line of a bad byte; columns that leave memory."""

import gzip

import pytest

from bounds.types import InputError
from merging.data import texts
from merging.data.texts import Texts, opened

CONTENT = "añ\nb\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_opened_by_its_content(tmp_path, mark, pack):
    path = tmp_path / "a.anything"
    path.write_bytes(pack(mark + CONTENT.encode()))
    with opened(path) as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_bad_byte_is_named_with_its_line(tmp_path, pack):
    path = tmp_path / "a.csv"
    path.write_bytes(pack("ok �\n".encode() * 5000 + b"caf\xe9\n" + b"ok\n"))
    with pytest.raises(InputError, match="line 5001: expected text in UTF-8; got byte 0xe9"), opened(path) as file:
        file.read()


def test_a_cut_archive_is_named(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(CONTENT.encode() * 1000)[:-20])
    with pytest.raises(InputError, match="expected a whole gzip file"), opened(path) as file:
        file.read()


@pytest.mark.parametrize("memory", [2**20, 10])
def test_a_column_of_texts_is_the_list_it_was_made_of(monkeypatch, memory):
    monkeypatch.setattr(texts, "MEMORY", memory)
    wanted = ["", "größer", "日本語" * 30, "\n", ""]
    column = Texts()
    for index, text in enumerate(wanted):
        column.append(text)
        assert column[index] == text
        assert column[0] == ""
    assert column._file._rolled == (memory == 10)
    assert list(column) == wanted
    assert column[-2] == "\n"
    with pytest.raises(IndexError):
        column[5]
