"""From a source to examples: every format gives the same, formats are told apart, data sets given from Python."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from bounds.types import InputError
from merging.data import Source, from_dataset, read

TEXTS = ["a b", "größer", 'c, "d"', "e"]
LABELS = ["no", "yes", "yes", "no"]


@pytest.fixture
def folder(tmp_path):
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, LABELS, strict=True)])
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    np.savez(tmp_path / "a.npz", text=np.array(TEXTS), label=np.array(LABELS))
    return tmp_path


def test_every_format_gives_the_same_examples(folder):
    sources = [Source(path=f"a.{suffix}", text="text") for suffix in ("csv", "jsonl", "json", "npz")]
    table = pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS, "label": LABELS})
    table.to_parquet(folder / "a.parquet")
    table.save_to_disk(folder / "saved")
    sources += [Source(path="a.parquet"), Source(path="saved"), Source(dataset="saved")]
    for source in sources:
        found = read(source, folder)
        assert list(found.inputs) == TEXTS, source
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, 1, 0]
        assert found.class_names == ("no", "yes")
        assert found.files
        assert len(found.key()) == 64


def test_a_format_is_named_told_by_the_suffix_or_by_the_content(folder):
    shutil.copy(folder / "a.csv", folder / "a.dat")
    shutil.copy(folder / "a.npz", folder / "a.bin")
    assert len(read(Source(path="a.dat", format="csv"), folder)) == 4
    assert len(read(Source(path="a.bin", text="text"), folder)) == 4
    assert len(read(Source(path=str(folder / "a.csv")), folder / "elsewhere")) == 4
    shutil.copy(folder / "a.csv", folder / "A.CSV")
    assert len(read(Source(path="A.CSV"), folder)) == 4
    with pytest.raises(InputError, match=r"a known format; got suffix '\.dat'; say which with format: csv or"):
        read(Source(path="a.dat"), folder)
    with pytest.raises(InputError, match=r"format of data a\.csv: expected .* got 'xml'"):
        read(Source(path="a.csv", format="xml"), folder)
    with pytest.raises(InputError, match="a file or a folder; got nothing there"):
        read(Source(path="b.csv"), folder)
    for source in (Source(path=".", format="csv"), Source(path="a.csv", format="images")):
        with pytest.raises(InputError, match=r"expected data that can be read; got (Is a directory|Not a directory)"):
            read(source, folder)


def test_the_key_follows_columns_and_content_but_not_the_place(folder):
    key = read(Source(path="a.jsonl"), folder).key()
    assert read(Source(path=str(folder / "a.jsonl")), folder).key() == key
    assert read(Source(path="a.jsonl", text="label", label=None), folder).key() != key
    with open(folder / "a.jsonl", "a") as file:
        file.write("\n")
    assert read(Source(path="a.jsonl"), folder).key() != key


def test_the_users_classes_name_unlabelled_examples(folder):
    found = read(Source(path="a.csv", label=None, classes=("x", "y")), folder)
    assert (found.labels, found.class_names) == (None, ("x", "y"))


def test_data_sets_of_torch_and_lists_of_pairs():
    x, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 0, 2])
    for dataset in (TensorDataset(x, y), [(row, int(label)) for row, label in zip(x, y, strict=True)]):
        found = from_dataset(dataset, ["a", "b", "c"])
        assert found.labels is not None
        assert torch.equal(torch.stack(list(found.inputs)), x)
        assert torch.equal(found.labels, y)
        assert found.class_names == ("a", "b", "c")
        assert torch.equal(found.inputs[-1], x[-1])
    with pytest.raises(InputError, match=r"data of type TensorDataset, row 1: expected a label in 0\.\.1; got 2"):
        from_dataset(TensorDataset(x, y), ["a", "b"])


def test_names_of_classes_come_from_the_data_set():
    class Named(list):
        classes = ("cat", "dog")

    found = from_dataset(Named([("a", 1), ("b", 0)]))
    assert (found.class_names, list(found.inputs)) == (("cat", "dog"), ["a", "b"])


class Stream(IterableDataset):
    def __iter__(self):
        yield 0, 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "expected pairs .* got a stream"),
        ([], "expected rows with examples"),
        ([(1, 0), (1, 2, 3)], r"row 1: expected a pair \(x, y\); got 3 parts"),
        ([torch.zeros(2)], "row 0: expected a pair .* got a Tensor"),
        ([(1, 0), (1, None)], "row 1: expected a label; got nothing"),
    ],
)
def test_what_is_no_data_set_of_pairs_is_refused(dataset, message):
    with pytest.raises(InputError, match=message):
        from_dataset(dataset)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        (Source(path="a.parquet"), "pyarrow"),
        (Source(dataset="glue"), "datasets"),
        (Source(path="images"), "pillow"),
    ],
)
def test_a_package_that_is_not_installed_is_named(folder, monkeypatch, source, package):
    for name in ("pyarrow", "pyarrow.parquet", "datasets", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    (folder / "a.parquet").write_bytes(b"PAR1")
    (folder / "images" / "cat").mkdir(parents=True)
    (folder / "images" / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"expected the package {package}; got not installed; pip install"):
        read(source, folder)


def test_a_limit_draws_rows_with_their_labels_and_is_part_of_the_key(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 7} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, again, whole = (read(Source(path="a.jsonl", limit=limit), tmp_path) for limit in (12, 12, 99))
    assert found.labels is not None
    assert list(found.inputs) == list(again.inputs)
    assert [int(text.split()[1]) % 7 for text in found.inputs] == found.labels.tolist()
    assert len(set(found.inputs)) == len(found) == 12
    assert list(found.inputs) != [f"text {i}" for i in range(12)], "files are often sorted by class"
    assert list(whole.inputs) == [row["text"] for row in rows]
    assert found.key() != read(Source(path="a.jsonl"), tmp_path).key()
    with pytest.raises(InputError, match="expected a limit of at least 1 row; got 0"):
        Source(path="a.jsonl", limit=0)
