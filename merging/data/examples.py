"""Examples as they were read, before any tokenizer; which of them are identical; what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.types import Inputs, leaves, refuse
from merging.checkpoints import sha256

CHUNK = 2**20
"""Bytes of a file that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N examples: ``inputs`` (read when asked for, by index) and, unless unlabelled, ``labels`` int64 [N].

    An input is a text, a pair of texts, a PIL image or a numpy array. ``class_names`` are in the order of the labels
    (None: not known); ``files`` all files that were read, named in the digest relative to ``root``; ``selection`` what
    was taken of them, as text; ``notes`` what a user should be told, one line each.
    """

    inputs: Sequence[Any]
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    files: tuple[Path, ...] = ()
    root: Path | None = None
    selection: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def digest(self) -> str:
        """Return the sha256 of the content: of one file its own, of several that of their relative names and sha256s.

        Where there are no files, of the examples and their labels. Every byte is read, once per object.

        Raises:
            InputError: a file that is gone or cannot be read.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if not self.files:
            return self._content()
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        whole = hashlib.sha256()
        for path in self.files:
            inside = self.root is not None and path.is_relative_to(self.root)
            name = path.relative_to(self.root).as_posix() if inside and self.root else path.name
            whole.update(f"{json.dumps(name)} {file_sha256(path)}\n".encode())
        return whole.hexdigest()

    def key(self) -> str:
        """Return what identifies these inputs, in their order: a sha256 of :meth:`digest` and of what was taken."""
        return hashlib.sha256(f"{self.digest()} {self.selection}".encode()).hexdigest()

    def _content(self) -> str:
        whole = hashlib.sha256()
        for row in range(len(self.inputs)):
            whole.update(_row_hash(self.inputs, row))
        labels = None if self.labels is None else self.labels.tolist()
        whole.update(json.dumps([labels, self.class_names]).encode())
        return whole.hexdigest()


class Taken(Sequence[Any]):
    """The rows of a sequence at ``index``, read when they are asked for."""

    def __init__(self, rows: Sequence[Any], index: Sequence[int]) -> None:
        self.rows, self.taken = rows, index

    def __len__(self) -> int:
        return len(self.taken)

    def __getitem__(self, row: Any) -> Any:
        return self.rows[self.taken[row]]

    def raw(self, row: int) -> bytes:
        """Return the bytes that identify a row."""
        return raw(self.rows, self.taken[row])


class Pairs(Sequence[Any]):
    """Rows of two columns, as pairs."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, row: Any) -> tuple[Any, Any]:
        return self.first[row], self.second[row]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in parts.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        cure = "put it back, or read the data again"
        refuse(f"data {path}", expected="a file that can be read", got=error.strerror or error, cure=cure)


def groups(inputs: Sequence[Any] | Inputs) -> Tensor:
    """Return int64 [N]: examples with the same number are identical (by 64 bits of a hash of their bytes). Exact.

    Of raw examples, their texts, arrays or files are compared; of prepared ones (a tensor or a mapping of tensors, the
    example first) the bytes of all tensors, as :class:`merging.suites.Suite` compares splits: texts that differ may
    have the same tokens.

    Raises:
        InputError: an example that is none of these.
    """
    if isinstance(inputs, (Tensor, Mapping)):
        columns = [_row_bytes(tensor) for tensor in leaves(inputs)]
        hashes = [_hash(b"".join(map(bytes, parts))) for parts in zip(*columns, strict=True)]
    else:
        hashes = [_row_hash(inputs, row) for row in range(len(inputs))]
    return torch.tensor([int.from_bytes(value[:8], "little", signed=True) for value in hashes], dtype=torch.int64)


def _row_bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's rows as bytes [N, B]."""
    flat = tensor.detach().reshape(len(tensor), -1).cpu().contiguous()
    return flat.view(torch.uint8).numpy()


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _row_hash(rows: Sequence[Any], row: int) -> bytes:
    return _hash(raw(rows, row))


def raw(rows: Sequence[Any], row: int) -> bytes:
    """Return the bytes that identify a row: those of its file where it has one, else of its value.

    Raises:
        InputError: no text, pair, array, tensor or image.
    """
    own: Callable[[int], bytes] | None = getattr(rows, "raw", None)
    return own(row) if own else _value_bytes(rows[row], row)


def _value_bytes(value: Any, row: int) -> bytes:
    if isinstance(value, str):
        return b"text " + value.encode("utf-8", "surrogatepass")
    if isinstance(value, (tuple, list)):
        parts = [_value_bytes(part, row) for part in value]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    if isinstance(value, Mapping):
        return _value_bytes([part for item in sorted(value.items()) for part in item], row)
    if isinstance(value, Tensor):
        described = f"tensor {value.dtype} {tuple(value.shape)} "
        return described.encode() + _row_bytes(value.reshape(1, -1)).tobytes()
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        array = np.asarray(value)
        return f"array {array.dtype.str} {array.shape} ".encode() + array.tobytes()
    if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):  # a PIL image
        return f"image {value.mode} {value.size} ".encode() + value.tobytes()
    kind, cure = type(value).__name__, "pass one of these, or leave the groups out"
    return refuse(f"example {row}", expected="a text, a pair, an array or an image", got=f"a {kind}", cure=cure)
