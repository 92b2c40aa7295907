"""JSON lines and lists: packed or not; every malformed file in one line with file and line."""

import gzip
import json

import pytest

from bounds.types import InputError
from merging.data import Source, read

ROWS = [{"text": "größer\u2028", "label": "b", "n": [1]}, {"label": "a", "text": 'two\n"lines"'}]


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.ndjson", lines(ROWS).replace(b"\n", b"\r\n\r\n") + b"\n\n"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_objects_are_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = read(Source(path=name), tmp_path)
    assert list(found.inputs) == [row["text"] for row in ROWS]
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([1, 0], ("a", "b"))


BAD = {
    "empty": ("", "expected rows with examples; got an empty file"),
    "no json": ('{"text": "a", "label": 0}\n\n{"text": "b"\n', "line 3: expected JSON; got .* at column 13"),
    "no object": ('{"text": "a", "label": 0}\n[1]\n', "line 2: expected an object; got a list"),
    "missing": ('{"text": "a", "label": 0}\n{"label": 1}\n', "line 2: expected a column 'text'; got columns label"),
    "twice": ('{"text": "a", "text": "b"}\n', "line 1: expected each name once in an object; got 'text' twice"),
    "number": (
        '{"text": "a", "label": 0}\n{"text": 3, "label": 0}\n',
        "line 2: expected text in column 'text'; got int",
    ),
    "null": ('{"text": null, "label": 0}\n', "line 1: expected text in column 'text'; got nothing"),
    "surrogate": ('{"text": "\\ud800", "label": 0}\n', "line 1: .* got half a surrogate pair"),
    "label": ('{"text": "a", "label": 0}\n{"text": "a", "label": NaN}\n', "line 2: expected a label; got nan"),
    "fraction": ('{"text": "a", "label": 0.5}\n', "line 1: .* got the fraction 0.5"),
    "deep": ("[" * 100_000, "line 1: expected plain JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as found:
        read(Source(path="a.jsonl"), tmp_path)
    assert str(tmp_path / "a.jsonl") in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', "expected a list of objects; got a dict"),
        ('[{"text": "a", "label": 0},\n 3]', "row 1: expected an object; got a int"),
        ('[{"text": "a", "label": 0},\n {"text"}]', "line 2: expected JSON"),
        ("[]", "expected rows with examples"),
        ('[{"a": 1,\n "a": 2}]', "each name once in an object; got 'a' twice"),
    ],
)
def test_a_malformed_list_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read(Source(path="a.json"), tmp_path)
