"""Splits of texts: sizes, disjointness by token ids, and no draw that depends on other tasks."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from bounds.types import InputError
from merging.suites.text8.loading import read_examples
from merging.suites.text8.texts import Sizes, choose, read_rows, vocabulary, write_examples, write_rows


def rows(train, test):
    """Rows of a source; the text is the number of the row."""
    return [
        {"split": split, "label": i % 3, "label_name": "abc"[i % 3], "text": f"{split} {i}"}
        for split, count in (("train", train), ("test", test))
        for i in range(count)
    ]


def distinct(count):
    return np.arange(2 * count).reshape(count, 2)


def sizes_of(chosen):
    return Counter(row["split"] for row in chosen)


def test_sizes_are_kept_where_there_is_enough_and_shared_where_there_is_not():
    sizes = Sizes(train=50, calibration=10, validation=20, test=40)
    assert sizes_of(choose("t", rows(100, 90), distinct(190), sizes, 0)) == {
        "train": 50,
        "calibration": 10,
        "validation": 20,
        "test": 40,
    }
    assert sizes_of(choose("t", rows(25, 30), distinct(55), sizes, 0)) == {
        "train": 20,
        "calibration": 5,
        "validation": 10,
        "test": 20,
    }


def test_parts_of_the_source_do_not_mix_and_calibration_has_no_label():
    chosen = choose("t", rows(40, 40), distinct(80), Sizes(), 0)
    assert {row["split"] for row in chosen} == {"train", "calibration", "validation", "test"}
    for row in chosen:
        own = "train" if row["split"] in ("train", "calibration") else "test"
        assert row["text"].startswith(own)
        assert ("label" in row) == ("label_name" in row) == (row["split"] != "calibration")


def test_equal_token_ids_stand_once_and_rather_in_test():
    source, ids = rows(40, 40), distinct(80)
    ids[0], ids[1], ids[41] = ids[40], ids[2], ids[40]
    chosen = {row["text"] for row in choose("t", source, ids, Sizes(), 0)}
    assert "test 0" in chosen
    assert not chosen & {"train 0", "train 2", "test 1"}
    assert len(chosen) == 77


def test_draws_follow_seed_and_name_and_chosen_rows_stay():
    source, ids = rows(40, 40), distinct(80)
    first = choose("t", source, ids, Sizes(), 0)
    assert first == choose("t", source, ids, Sizes(), 0)
    assert first != choose("t", source, ids, Sizes(), 1)
    assert first != choose("u", source, ids, Sizes(), 0)
    assert choose("u", first, distinct(len(first)), Sizes(train=1), 5) == first


def test_examples_are_read_as_they_were_written(tmp_path):
    chosen = choose("t", rows(30, 30), distinct(60), Sizes(), 0)
    ids = np.random.default_rng(0).integers(100, 999, (len(chosen), 4))
    words = vocabulary([5, 6], [ids, np.array([[5, 7]])])
    assert words[:3].tolist() == [5, 6, 7]
    write_examples(chosen, ids, np.array([[5, 7], [7, 5]]), words, tmp_path / "t.npz")
    splits, names = read_examples(tmp_path / "t.npz")
    assert names.tolist() == [[0, 2], [2, 0]]
    assert splits["calibration"].labels is None
    found = np.concatenate([words[np.asarray(s.inputs)] for s in splits.values()])  # pyright: ignore
    assert np.array_equal(found, ids)
    labels = splits["test"].labels
    assert labels is not None
    assert labels.tolist() == [row["label"] for row in chosen if row["split"] == "test"]


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_rows(rows(3, 3), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_rows(tmp_path / "one", 3) == rows(3, 3)


@pytest.mark.parametrize(
    "bad",
    [
        {"split": "dev", "label": 0, "text": ""},
        {"split": "train", "label": 3, "text": ""},
        {"split": "train", "text": ""},
        {"split": "calibration", "label": 0, "text": ""},
        {"split": "test", "label": 0},
    ],
)
def test_lines_that_are_no_texts_are_refused(tmp_path, bad):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, [*rows(1, 1), bad])).encode()))
    with pytest.raises(InputError, match="line 3: expected text, and label 0 to 2"):
        read_rows(path, 3)


@pytest.mark.parametrize("content", [None, b"no gzip", gzip.compress(b"{"), gzip.compress(b"[]"), b"\x1f\x8b"])
def test_files_that_hold_none_are_refused(tmp_path, content):
    path = tmp_path / "t.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"texts .*t.jsonl.gz"):
        read_rows(path, 3)
