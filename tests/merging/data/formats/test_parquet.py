"""Parquet: by row groups, with images and classes as the hub writes them."""

import io
import json

import numpy as np
import pytest

from bounds.types import InputError
from merging.data import Source, groups, read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

TEXTS = [f"text {number} ß" for number in range(25)]
LABELS = [number % 3 for number in range(25)]


def table(**columns):
    return pa.table(columns)


def test_rows_are_read_from_their_groups_in_any_order(tmp_path):
    pq.write_table(table(text=TEXTS, label=LABELS, other=TEXTS[::-1]), tmp_path / "a.parquet", row_group_size=4)
    found = read(Source(path="a.parquet"), tmp_path)
    order = np.random.default_rng(0).permutation(25)
    assert [found.inputs[row] for row in order] == [TEXTS[row] for row in order]
    assert found.labels is not None
    assert found.labels.tolist() == LABELS
    assert found.inputs[-1] == TEXTS[-1]
    pairs = read(Source(path="a.parquet", text=("text", "other"), label=None), tmp_path)
    assert pairs.inputs[3] == (TEXTS[3], TEXTS[-4])


def test_only_one_group_is_held(tmp_path, monkeypatch):
    pq.write_table(table(text=TEXTS, label=LABELS), tmp_path / "a.parquet", row_group_size=10)
    found = read(Source(path="a.parquet"), tmp_path)
    calls = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: (calls.append(a[1]), real(*a, **k))[1])
    assert list(found.inputs) == TEXTS
    assert calls in ([0, 1, 2], [1, 2])  # the first was read at the door


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def test_images_and_classes_of_the_hub(tmp_path):
    images = [{"bytes": png(value), "path": None} for value in range(5)]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = table(image=images, label=[0, 1, 0, 1, 1]).replace_schema_metadata(metadata)
    pq.write_table(columns, tmp_path / "a.parquet")
    found = read(Source(path="a.parquet"), tmp_path)
    assert [image.getpixel((0, 0))[0] for image in found.inputs] == list(range(5))
    assert found.class_names == ("cat", "dog")
    assert len(set(groups(found.inputs).tolist())) == 5
    pq.write_table(table(img=[png(7)], label=[0]), tmp_path / "b.parquet")
    assert read(Source(path="b.parquet"), tmp_path).inputs[0].getpixel((0, 0)) == (7, 0, 0)


def test_a_split_is_the_rows_that_say_so(tmp_path):
    split = ["train", "test"] * 12 + ["train"]
    pq.write_table(table(text=TEXTS, label=LABELS, split=split), tmp_path / "a.parquet", row_group_size=4)
    found = read(Source(path="a.parquet", split="test"), tmp_path)
    assert list(found.inputs) == TEXTS[1::2]
    assert found.labels is not None
    assert found.labels.tolist() == LABELS[1::2]
    assert len(groups(found.inputs).unique()) == 12
    with pytest.raises(InputError, match="rows of split 'dev'; got splits test, train"):
        read(Source(path="a.parquet", split="dev"), tmp_path)


def test_dictionaries_are_texts(tmp_path):
    columns = table(
        text=pa.array(TEXTS).dictionary_encode(), label=pa.array(["b", "a"] * 12 + ["a"]).dictionary_encode()
    )
    pq.write_table(columns, tmp_path / "a.parquet")
    found = read(Source(path="a.parquet"), tmp_path)
    assert (found.inputs[2], found.class_names) == (TEXTS[2], ("a", "b"))


BAD = {
    "missing": ({"sent": ["a"], "label": [0]}, "got columns sent, label"),
    "no label": ({"text": ["a"]}, "expected a column 'label'; got columns text"),
    "number": ({"text": [3], "label": [0]}, "row 0: expected text in column 'text'; got int"),
    "null label": ({"text": ["a", "b"], "label": [0, None]}, "label, data .*, row 1: expected a label; got nothing"),
    "fraction": ({"text": ["a", "b"], "label": [0.0, 1.0]}, "row 0: .* got the fraction 0.0"),
    "no image": ({"image": [b"text"], "label": [0]}, "row 0: expected an image that PIL can open"),
    "image as text": ({"image": ["text"], "label": [0]}, "row 0: expected the bytes of an image; got a str"),
    "empty": ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "expected rows with examples"),
}


@pytest.mark.parametrize(("columns", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_meant_is_refused(tmp_path, columns, message):
    pq.write_table(table(**columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message) as found:
        read(Source(path="a.parquet"), tmp_path)
    assert "\n" not in str(found.value)


def test_a_missing_text_further_on_is_named_with_its_row(tmp_path):
    pq.write_table(table(text=["a", None], label=[0, 1]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 1: expected text in column 'text'; got nothing"):
        list(read(Source(path="a.parquet"), tmp_path).inputs)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(text=TEXTS, label=LABELS), path)
    for content in (b"", b"PAR1 text", path.read_bytes()[:-50]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="expected a whole parquet file"):
            read(Source(path="a.parquet"), tmp_path)
