"""Images of files and of bytes: decoded when asked for, each error with its place."""

import io

import numpy as np
import pytest
from PIL import Image

from bounds.types import InputError
from merging.data.images import Images, embedded, image_files


def encoded(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 255, (3, 40, 30, 3), dtype=np.uint8)


def test_files_are_read_when_they_are_asked_for(tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(files, PIXELS, strict=True):
        path.write_bytes(encoded(pixels))
    images = image_files(files)
    assert len(images) == 3
    assert all(np.array_equal(np.asarray(image), pixels) for image, pixels in zip(images, PIXELS, strict=True))
    assert images.raw(1) == files[1].read_bytes()
    files[1].write_bytes(encoded(PIXELS[2]))
    assert np.array_equal(np.asarray(images[1]), PIXELS[2])
    files[1].unlink()
    with pytest.raises(InputError, match=r"image .*1\.png: expected a file that can be read; got No such file"):
        images[1]


def test_no_image_is_named_at_once_and_a_cut_one_when_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"text")
    with pytest.raises(InputError, match=r"image .*a\.png: expected an image that PIL can open; got something else"):
        image_files([path])
    path.write_bytes(encoded(PIXELS[0])[:-2000])
    with pytest.raises(InputError, match=r"image .*a\.png: expected a whole image"):
        image_files([path])[0]
    with pytest.raises(InputError, match="expected an image file; got nothing there"):
        image_files([tmp_path / "b.png"])


def test_a_column_holds_bytes_or_a_mapping_with_bytes_or_a_path(tmp_path):
    content = encoded(PIXELS[0])
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for value in (content, {"bytes": content, "path": "gone.png"}, {"bytes": None, "path": str(path)}):
        assert embedded(value, "row 0") == content
    for value, got in ((None, "nothing"), ({"bytes": None, "path": None}, "nothing"), ("text", "a str")):
        with pytest.raises(InputError, match=f"row 0: expected the bytes of an image; got {got}"):
            embedded(value, "row 0")
    assert Images(1, lambda row: content, str)[-1].size == (30, 40)
    with pytest.raises(IndexError):
        Images(1, lambda row: content, str)[1]
