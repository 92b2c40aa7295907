"""Images in files or in the bytes of a table, decoded when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bounds.types import refuse

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
CURE = "replace the file or take it out"


class Images(Sequence[Any]):
    """PIL images, decoded whole at each access.

    Args:
        count: N.
        read: row -> the bytes of its file.
        where: row -> how an error calls it.
    """

    def __init__(self, count: int, read: Callable[[int], bytes], where: Callable[[int], str]) -> None:
        self._count, self._read, self._where = count, read, where

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        row = range(self._count)[row]
        image = open_image(io.BytesIO(self._read(row)), self._where(row))
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # what PIL's decoders raise
            refuse(self._where(row), expected="a whole image", got=error, cure=CURE)
        return image

    def raw(self, row: int) -> bytes:
        """Return the bytes of a row's file, which identify it."""
        return self._read(row)


def image_files(files: Sequence[Path]) -> Images:
    """Return the images of files.

    Raises:
        InputError: a file that is gone or no image, told by its first bytes; later, one that is damaged further on.
    """
    for path in files:
        open_image(path, f"image {path}")
    return Images(len(files), lambda row: _content(files[row]), lambda row: f"image {files[row]}")


def open_image(file: Any, where: str) -> Any:
    """Return a PIL image of which only the header was read.

    Raises:
        InputError: no image; PIL is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        refuse("images", expected="the package pillow", got="not installed", cure="pip install pillow")
    try:
        image = Image.open(file)
        if isinstance(file, Path):
            image.close()
    except FileNotFoundError:
        refuse(where, expected="an image file", got="nothing there", cure="correct its name, relative to the data file")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "something else, or a damaged one"
        refuse(where, expected="an image that PIL can open", got=reason, cure=CURE)
    return image


def embedded(value: Any, where: str) -> bytes:
    """Return the bytes of an image in a table: bytes, or a mapping with ``bytes`` or ``path``.

    Raises:
        InputError: neither.
    """
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if content is None and isinstance(value, Mapping) and value.get("path"):
        return _content(Path(value["path"]))
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    got = "nothing" if content is None else f"a {type(content).__name__}"
    return refuse(where, expected="the bytes of an image", got=got, cure="name another column with image")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(f"image {path}", expected="a file that can be read", got=error.strerror or error, cure=CURE)
