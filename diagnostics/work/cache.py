"""What a report has computed, kept under its folder by the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from bounds.types import Params
from diagnostics.plain import from_plain, to_plain
from merging import files
from merging.processes import Processes

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

    A file that cannot be read back (cut short, other fields) counts as absent and is made again. Of several processes
    the first reads and writes; the others get what it has read.
    """

    folder: Path | None
    processes: Processes = field(default_factory=Processes)

    def data(self, kind: type[Data], name: str, key: str, make: Callable[[], Data]) -> Data:
        """Return the data class kept under (name, key), or make and keep it."""
        path = self._path(f"{name}-{key}.json")
        kept = self.processes.broadcast(_read(kind, path))
        if kept is not None:
            return kept
        value = make()
        if path is not None:
            write(path, json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False).encode())
        return value

    def has(self, name: str, key: str) -> bool:
        """Whether a data class is kept under (name, key)."""
        path = self._path(f"{name}-{key}.json")
        return self.processes.broadcast(path is not None and path.is_file())

    def load(self, name: str, key: str) -> Mapping[str, Any] | None:
        """Return the mapping of tensors and plain values kept under (name, key), or None."""
        return self.processes.broadcast(_load(self._path(f"{name}-{key}.pt")))

    def save(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a mapping of tensors and plain values under (name, key)."""
        path = self._path(f"{name}-{key}.pt")
        if path is not None:
            files.write(path, lambda file: torch.save(dict(value), file))

    def _path(self, name: str) -> Path | None:
        if self.folder is None or self.processes.rank:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


def _read(kind: type[Data], path: Path | None) -> Data | None:
    if path is None or not path.is_file():
        return None
    try:
        return from_plain(kind, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError):
        path.unlink(missing_ok=True)
        return None


def _load(path: Path | None) -> Mapping[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        return torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        path.unlink(missing_ok=True)
        return None


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or not there (an older one stays).

    Raises:
        InputError: the disk refuses the bytes.
    """
    files.write(path, lambda file: file.write(content))
