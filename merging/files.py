"""Writing files so that each is complete or not there; an older one stays until the new one is on the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bounds.types import refuse


def check_destination(path: str | Path, what: str = "output") -> Path:
    """Check, before any work, that a file can be written at ``path``.

    Raises:
        InputError: a folder, or a place whose folder does not exist or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        refuse(f"{what} {path}", expected="a file name", got="a folder", cure="add a file name such as out.pt")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        refuse(f"{what} {path}", expected="a writable folder", got=f"{path.parent}", cure="create the folder first")
    return path


@contextmanager
def replacing(path: str | Path, what: str = "output") -> Iterator[Path]:
    """Give the name of an empty temporary file beside ``path``; it takes its place when the block has ended well.

    Raises:
        InputError: see :func:`check_destination`; also when the disk refuses the bytes.
    """
    path = check_destination(path, what)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        refuse(
            f"{what} {path}",
            expected="room on a disk that can be written",
            got=error.strerror or error,
            cure="free space or choose another disk",
        )
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write(path: str | Path, content: Callable[[BinaryIO], object], what: str = "output") -> None:
    """Write a file with ``content(open file)``, atomically.

    Raises:
        InputError: see :func:`replacing`.
    """
    with replacing(path, what) as temporary, open(temporary, "wb") as file:
        content(file)
        file.flush()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
