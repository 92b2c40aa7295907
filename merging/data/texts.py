"""Text files line by line, packed or not, with the line of every error; texts that need not fit in memory."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bounds.types import refuse

MEMORY = 2**26
"""Bytes of a column of texts that are kept in memory; a longer one lies in a file without a name."""


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a file of UTF-8 text, a byte order mark or gzip's header noticed by its first bytes.

    Raises:
        InputError: bytes that are no UTF-8 (with their line), a damaged archive; raised inside the block.
    """
    try:
        with _unpacked(path) as file:
            yield file
    except UnicodeDecodeError as error:
        cure = "save it as UTF-8, e.g. iconv -f latin1 -t utf-8"
        got = f"byte 0x{error.object[error.start]:02x}" if isinstance(error.object, bytes) else error.reason
        refuse(f"data {path}, line {_bad_line(path)}", expected="text in UTF-8", got=got, cure=cure)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        refuse(f"data {path}", expected="a whole gzip file", got=error, cure="copy the file again")


def _unpacked(path: Path) -> TextIO:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _bad_line(path: Path) -> int:
    """Return the first line that is no UTF-8."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        return next((number for number, line in enumerate(file, 1) if "\ufffd" in _lenient(line)), 0)


def _lenient(line: bytes) -> str:
    """Return a line with U+FFFD for each bad byte, and for nothing else."""
    return line.replace("\ufffd".encode(), b"").decode("utf-8", "replace")


class Texts(Sequence[str]):
    """A column of texts that grows at its end; beyond ``MEMORY`` bytes it lies in a file that is gone with it.

    It is for one thread of one process: they would share the place in the file.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=MEMORY)  # noqa: SIM115 - lives as long as the column
        self._ends = array("q", [0])
        self._at_end = True

    def __del__(self) -> None:
        self._file.close()

    def append(self, text: str) -> None:
        """Add one."""
        if not self._at_end:
            self._file.seek(self._ends[-1])
            self._at_end = True
        self._file.write(content := text.encode())
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> str:
        row = range(len(self))[row]  # also a negative one; IndexError beyond the end
        self._at_end = False
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row]).decode()
