"""What identifies examples: digests of files and contents, and which examples are copies."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bounds.types import InputError
from merging.data import Examples, from_dataset, groups
from merging.data.examples import Pairs, Taken
from merging.suites.base import row_hashes


def test_the_digest_of_a_file_is_its_sha256_and_that_of_a_folder_moves_with_it(tmp_path):
    digests = []
    for name in ("here", "there"):
        (tmp_path / name / "sub").mkdir(parents=True)
        files = [tmp_path / name / "a", tmp_path / name / "sub" / "b"]
        for path in files:
            path.write_text(path.name)
        digests.append(Examples(inputs=["x"], files=tuple(files), root=tmp_path / name).digest())
    assert digests[0] == digests[1]
    assert Examples(inputs=["x"], files=(files[0],)).digest() == hashlib.sha256(b"a").hexdigest()
    files[1].rename(files[1].with_name("c"))
    renamed = (files[0], files[1].with_name("c"))
    assert Examples(inputs=["x"], files=renamed, root=tmp_path / "there").digest() != digests[0]
    with pytest.raises(InputError, match="expected a file that can be read"):
        Examples(inputs=["x"], files=tuple(files)).digest()


def test_without_files_the_content_is_the_digest():
    pairs = [(torch.arange(3), 0), (torch.arange(3, 6), 1)]
    same = from_dataset([(x.clone(), y) for x, y in pairs]).digest()
    assert from_dataset(pairs).digest() == same
    assert from_dataset([(x + 1, y) for x, y in pairs]).digest() != same
    assert from_dataset([(x.int(), y) for x, y in pairs]).digest() != same
    assert from_dataset([(x, 1 - y) for x, y in pairs]).digest() != same


def test_the_key_tells_apart_what_was_taken_of_one_file(tmp_path):
    (tmp_path / "a").write_text("a")
    one, other = (Examples(inputs=["x"], files=(tmp_path / "a",), selection=text) for text in ("t", "u"))
    assert one.digest() == other.digest()
    assert one.key() != other.key()


def image(value):
    return Image.fromarray(np.full((2, 2), value, np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "a", "ab"],
        [("a", "text b"), ("atext ", "b"), ("a", "text b"), ("", "ab")],
        [image(0), image(1), image(0), Image.fromarray(np.zeros((1, 4), np.uint8))],
        [np.zeros(4), np.ones(4), np.zeros(4), np.zeros((2, 2))],
        [torch.zeros(4), torch.ones(4), torch.zeros(4), torch.zeros(2, 2)],
        [{"x": 1}, {"x": 2}, {"x": 1}, {"y": 1}],
    ],
    ids=["texts", "pairs", "images", "arrays", "tensors", "mappings"],
)
def test_only_copies_share_a_group(values):
    found = groups(values).tolist()
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_prepared_inputs_are_grouped_as_a_suite_compares_them():
    ids = torch.randint(3, (50, 2))
    inputs = {"input_ids": ids, "attention_mask": torch.ones(50, 2, dtype=torch.int64)}
    for value in (ids, inputs):
        mine, theirs = groups(value).tolist(), row_hashes(value)
        assert all((mine[i] == mine[j]) == (theirs[i] == theirs[j]) for i in range(50) for j in range(50))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="example 1: expected a text, a pair, an array or an image; got a set"):
        groups(["a", {1}])


def test_rows_taken_and_paired():
    rows = Taken(Pairs(["a", "b", "c"], ["x", "y", "z"]), [2, 0])
    assert list(rows) == [("c", "z"), ("a", "x")]
    assert torch.equal(groups(rows), groups([("c", "z"), ("a", "x")]))
