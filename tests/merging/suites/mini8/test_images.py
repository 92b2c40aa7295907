"""Splits and captions of mini8's build."""

import hashlib

import numpy as np
import pytest

from bounds.types import InputError
from merging.suites.mini8.images import Sizes, captioned, in_no_task, split
from merging.suites.mini8.sources import Source
from tests.merging.suites.mini8.worlds import write_source

SIZES = Sizes(pretrain_share=0.5, held_apart=12, test_images=20)


@pytest.fixture
def source(tmp_path) -> Source:
    return write_source(tmp_path, "first")


def _images(part) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in part[0]}


def test_no_image_is_in_two_parts_and_copies_in_the_source_are_dropped(source, tmp_path):
    parts = split(source, "first", tmp_path, SIZES, 0)
    seen = {name: _images(part) for name, part in parts.items()}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
    assert all(len(seen[name]) == len(part[0]) for name, part in parts.items())


def test_validation_and_test_come_from_the_same_part_of_the_source(source, tmp_path):
    parts = split(source, "first", tmp_path, SIZES, 0)
    with np.load(tmp_path / "first.npz") as arrays:
        test, train = ({image.tobytes() for image in arrays[f"x_{side}"]} for side in ("test", "train"))
    for name in ("test", "validation"):
        assert {image.tobytes() for image in parts[name][0]} <= test
    for name in ("train", "calibration", "pretrain"):
        assert {image.tobytes() for image in parts[name][0]} <= train


def test_labels_stay_with_their_images(source, tmp_path):
    with np.load(tmp_path / "first.npz") as arrays:
        sides = [zip(arrays[f"x_{side}"], arrays[f"y_{side}"], strict=True) for side in ("train", "test")]
        label = {image.tobytes(): y for side in sides for image, y in side}
    parts = split(source, "first", tmp_path, SIZES, 3)
    assert {"train", "calibration", "validation", "test"} <= set(parts)
    for images, labels in parts.values():
        assert len(labels) > 0
        assert [label[image.tobytes()] for image in images] == labels.tolist()


def test_a_seed_gives_one_split_and_another_seed_another(source, tmp_path):
    first, again, other = (split(source, "first", tmp_path, SIZES, seed)["train"] for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert _images(first) != _images(other)


def test_few_images_are_captioned_by_the_name_of_their_class(source, tmp_path):
    splits = {"first": split(source, "first", tmp_path, SIZES, 0)}
    (found,) = captioned({"first": source}, splits, 0.01, 0)
    texts = [found.texts[group] for group in found.groups]
    by_name = [text for text in texts if text[0].startswith("a picture of")]
    assert sorted(by_name) == [("a picture of left",), ("a picture of right",)]
    assert all(text[0].startswith("side") for text in texts if text not in by_name)


def test_a_changed_source_is_refused(source, tmp_path):
    path = tmp_path / "first.npz"
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(InputError, match=r"first.npz: expected sha256 .*another file"):
        split(source, "first", tmp_path, SIZES, 0)


def test_drawn_characters_are_many_and_named(tmp_path):
    (found,) = in_no_task({}, tmp_path, 40, 0)
    assert found.images.shape == (40, 32, 32, 3)
    assert len(found.texts) > 30
    assert all(second == f"the character {first}" for first, second in found.texts)
    assert all(image.std() > 1 for image in found.images)
