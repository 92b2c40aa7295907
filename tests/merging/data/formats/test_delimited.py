"""csv and tsv: what pandas reads, and every malformed file in one line with file and line."""

import csv

import pytest

from bounds.types import InputError
from merging.data import Source, read

ROWS = [("text", "label", "other"), ('a, "quoted" one', "1", "x"), ("two\nlines", "0", ""), ("", "1", "größer")]


def write(path, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_columns_are_those_that_pandas_reads(tmp_path, suffix, delimiter):
    pandas = pytest.importorskip("pandas")
    path = write(tmp_path / f"a.{suffix}", ROWS, delimiter)
    found = read(Source(path=f"a.{suffix}"), tmp_path)
    frame = pandas.read_csv(path, sep=delimiter, keep_default_na=False)
    assert list(found.inputs) == frame["text"].tolist()
    assert found.labels is not None
    assert found.labels.tolist() == frame["label"].tolist() == [1, 0, 1]
    assert found.files == (path,)
    pairs = read(Source(path=f"a.{suffix}", text=("text", "other"), label=None), tmp_path)
    assert list(pairs.inputs) == list(zip(frame["text"], frame["other"], strict=True))
    assert pairs.labels is None


def test_a_split_is_the_rows_that_say_so(tmp_path):
    write(
        tmp_path / "a.csv", [("split", "text", "label"), ("train", "a", "x"), ("test", "b", "y"), ("train", "c", "y")]
    )
    found = read(Source(path="a.csv", split="train"), tmp_path)
    assert list(found.inputs) == ["a", "c"]
    with pytest.raises(InputError, match="expected rows of split 'dev'; got splits test, train"):
        read(Source(path="a.csv", split="dev"), tmp_path)
    write(tmp_path / "b.csv", [("text", "label"), ("a", "x")])
    with pytest.raises(InputError, match="expected a column 'split'; got columns text, label"):
        read(Source(path="b.csv", split="dev"), tmp_path)


def test_a_field_may_be_longer_than_the_readers_own_limit(tmp_path):
    write(tmp_path / "a.csv", [("text", "label"), ("x" * 200_000, "0")])
    assert len(read(Source(path="a.csv"), tmp_path).inputs[0]) == 200_000


BAD = {
    "empty": ("", "expected a header; got an empty file"),
    "header only": ("text,label\n", "expected rows with examples; got none"),
    "twice": ("text,label,text\na,0,b\n", "line 1: expected each column once; got 'text' twice"),
    "no text": ("sent,label\na,0\n", "the column of texts or images by name; got columns sent, label"),
    "two texts": ("text,sentence,label\na,b,0\n", "by name; got columns text, sentence, label"),
    "a pair": ("text,text_pair,label\na,b,0\n", "by name; got columns text, text_pair, label"),
    "no label": ("text,class\na,0\n", "expected a column 'label'; got columns text, class; .*label: null"),
    "short": ('text,label\n"a\nb",0\nc\n', "line 4: expected 2 fields; got 1 fields"),
    "long": ("text,label\na,0\nb,1,\n", "line 3: expected 2 fields; got 3 fields"),
    "open quote": ('text,label\na,0\n"b,1\nc,0\n', "line 3: expected fields quoted as in RFC 4180; got unexpected end"),
    "stray quote": ('text,label\n"a" b,0\n', "line 2: expected fields quoted as in RFC 4180"),
    "label": ("text,label\na,0\nb,\n", "label, data .*a.csv, line 3: expected a label; got nothing"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=message) as found:
        read(Source(path="a.csv"), tmp_path)
    assert str(tmp_path / "a.csv") in str(found.value)
    assert "\n" not in str(found.value)


def test_quotes_of_a_file_of_tabs_swallow_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\nx\t1\n"he said\t0\nand left"\t1\n')
    with pytest.raises(InputError, match=r"a\.tsv, line 3: expected quotes that are plainly text"):
        read(Source(path="a.tsv"), tmp_path)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\nok,0\ncaf\xe9,1\n")
    with pytest.raises(InputError, match="line 3: expected text in UTF-8"):
        read(Source(path="a.csv"), tmp_path)


def test_blank_lines_are_no_rows_and_lines_are_those_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n\na,0\n\nb,x1.5\n\n")
    with pytest.raises(InputError, match="line 5: expected one of the classes"):
        read(Source(path="a.csv", classes=("0", "1")), tmp_path)


def test_a_column_of_images_names_files_beside_the_table(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "in").mkdir()
    image.new("RGB", (3, 2)).save(tmp_path / "in" / "x.png")
    write(tmp_path / "in" / "a.csv", [("image", "label"), ("x.png", "cat")])
    found = read(Source(path="in/a.csv"), tmp_path)
    assert found.inputs[0].size == (3, 2)
    assert found.files == (tmp_path / "in" / "a.csv", tmp_path / "in" / "x.png")
    write(tmp_path / "in" / "a.csv", [("image", "label"), ("y.png", "cat")])
    with pytest.raises(InputError, match=r"image .*y\.png: expected an image file; got nothing there"):
        read(Source(path="in/a.csv"), tmp_path)
