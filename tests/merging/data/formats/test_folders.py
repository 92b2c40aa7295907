"""Folders of images: what torchvision's ImageFolder reads, and what it would not say."""

import os

import numpy as np
import pytest
from PIL import Image

from bounds.types import InputError
from merging.data import Source, read

NAMES = {"dog": ["b.png", "a.JPG"], "Cat": ["1.webp", "in/2.bmp"], "ant eater": ["x.tiff", "y.gif", "z.jpeg"]}


@pytest.fixture
def root(tmp_path):
    for number, (kind, files) in enumerate(NAMES.items()):
        for index, name in enumerate(files):
            path = tmp_path / "root" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 3), 20 * number + index).save(path)
    return tmp_path / "root"


def test_images_labels_and_classes_are_those_of_torchvision(root):
    theirs = pytest.importorskip("torchvision.datasets").ImageFolder(str(root), loader=str)
    mine = read(Source(path="root"), root.parent)
    assert mine.class_names == tuple(theirs.classes) == ("Cat", "ant eater", "dog")
    assert mine.labels is not None
    files = {path: label for path, label in theirs.samples}
    files[str(root / "ant eater" / "y.gif")] = 1  # which torchvision does not take for an image
    assert {str(path): label for path, label in zip(mine.files, mine.labels.tolist(), strict=True)} == files
    assert [path.name for path in mine.files] == ["1.webp", "2.bmp", "x.tiff", "y.gif", "z.jpeg", "a.JPG", "b.png"]
    for image, path in zip(mine.inputs, mine.files, strict=True):
        with Image.open(path) as expected:
            assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert mine.notes == ()


def test_hidden_files_and_those_beside_the_classes_are_noted(root):
    (root / ".DS_Store").write_text("x")
    (root / "dog" / "._b.png").write_text("x")
    (root / "README.md").write_text("x")
    found = read(Source(path="root"), root.parent)
    assert len(found) == 7
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "2 hidden files left out",
        "not in a class's folder and left out: README.md",
    ]


def test_a_split_is_a_folder_and_its_folders_are_not_classes(root):
    root.rename(root.with_name("train"))
    found = read(Source(path=".", split="train"), root.parent)
    assert len(found) == 7
    with pytest.raises(InputError, match="got folders of splits: train; choose one with split: train"):
        read(Source(path="."), root.parent)
    with pytest.raises(InputError, match="expected a folder 'test'; got folders train"):
        read(Source(path=".", split="test"), root.parent)


def test_the_users_classes_order_the_labels(root):
    found = read(Source(path="root", classes=("dog", "ant eater", "Cat", "eel")), root.parent)
    assert found.labels is not None
    assert found.labels.bincount(minlength=4).tolist() == [2, 3, 2, 0]
    with pytest.raises(InputError, match="one of the classes dog, Cat; got 'ant eater'"):
        read(Source(path="root", classes=("dog", "Cat")), root.parent)
    assert read(Source(path="root", label=None), root.parent).labels is None


def test_folders_of_numbers_may_be_given_names(tmp_path):
    for name in ("0", "1"):
        (tmp_path / "root" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "root" / name / "a.png")
    found = read(Source(path="root", classes=("zero", "one")), tmp_path)
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([0, 1], ("zero", "one"))


def test_the_digest_is_of_names_and_contents(root):
    def digest():
        return read(Source(path=str(root)), root.parent).digest()

    before = digest()
    assert digest() == before
    (root / "dog" / "b.png").rename(root / "dog" / "c.png")
    renamed = digest()
    assert renamed != before
    Image.new("L", (4, 3), 99).save(root / "dog" / "c.png")
    assert digest() != renamed


def test_what_is_no_image_is_named(root):
    (root / "dog" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"data .*notes\.txt: expected an image \(\.png"):
        read(Source(path="root"), root.parent)
    (root / "dog" / "notes.txt").rename(root / "dog" / "notes.png")
    with pytest.raises(InputError, match=r"image .*notes\.png: expected an image that PIL can open"):
        read(Source(path="root"), root.parent)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(root, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("in"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="expected data that can be read; got Permission denied"):
        read(Source(path="root"), root.parent)


def test_layouts_without_classes_are_refused(root):
    (root.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"got no folders in it"):
        read(Source(path="empty"), root.parent)
    (root / "dog" / "b.png").rename(root / "b.png")
    with pytest.raises(InputError, match=r"got images without a class, such as b\.png"):
        read(Source(path="root"), root.parent)
    (root / "b.png").unlink()
    (root / "dog" / "a.JPG").unlink()
    with pytest.raises(InputError, match=r"data .*dog: expected images of this class; got none"):
        read(Source(path="root"), root.parent)
    with pytest.raises(InputError, match="no columns of a folder of images; got text"):
        read(Source(path="root", text="a"), root.parent)
