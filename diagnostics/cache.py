"""What a report has computed, kept under its folder by the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from bounds.types import Params, refuse
from diagnostics.plain import from_plain, to_plain

VERSION = "4"
"""Part of every key: raise it when the meaning of anything kept changes."""
Data = TypeVar("Data")


def digest(*parts: Any) -> str:
    """Return the hash of plain values (data classes, lists, mappings, numbers, text) and the cache's version."""
    text = json.dumps([VERSION, to_plain(parts)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def digest_params(params: Params) -> str:
    """Return the hash of names, shapes, dtypes and bytes of parameters."""
    whole = hashlib.sha256()
    for name, value in params.items():
        array = value.detach().cpu().contiguous().view(torch.uint8 if value.ndim else value.dtype)
        whole.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        whole.update(array.numpy().tobytes())
    return whole.hexdigest()[:24]


@dataclass(frozen=True)
class Cache:
    """Results under ``folder``: data classes as NAME-HASH.json, tensors as NAME-HASH.pt. None keeps nothing.

    A file that cannot be read back (cut short, other fields) counts as absent and is made again.
    """

    folder: Path | None

    def data(self, kind: type[Data], name: str, key: str, make: Callable[[], Data]) -> Data:
        """Return the data class kept under (name, key), or make and keep it."""
        path = self._path(f"{name}-{key}.json")
        if path is not None and path.is_file():
            try:
                return from_plain(kind, json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError):
                path.unlink(missing_ok=True)
        value = make()
        if path is not None:
            write(path, json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False).encode())
        return value

    def has(self, name: str, key: str) -> bool:
        """Whether a data class is kept under (name, key)."""
        path = self._path(f"{name}-{key}.json")
        return path is not None and path.is_file()

    def load(self, name: str, key: str) -> Mapping[str, Any] | None:
        """Return the mapping of tensors and plain values kept under (name, key), or None."""
        path = self._path(f"{name}-{key}.pt")
        if path is None or not path.is_file():
            return None
        try:
            return torch.load(path, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
            path.unlink(missing_ok=True)
            return None

    def save(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a mapping of tensors and plain values under (name, key)."""
        path = self._path(f"{name}-{key}.pt")
        if path is not None:
            _atomically(path, lambda file: torch.save(dict(value), file))

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or not there (an older one stays).

    Raises:
        InputError: the disk refuses the bytes.
    """
    _atomically(path, lambda file: file.write(content))


def _atomically(path: Path, fill: Callable[[Any], object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        refuse(f"output {path}", expected="room for the file", got=error.strerror, cure="free space or choose --out")
    finally:
        Path(temporary).unlink(missing_ok=True)
