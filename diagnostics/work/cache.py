"""What a report has computed, kept under its folder by the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from bounds.types import InputError, Params, refuse
from merging import files, records
from merging.plain import checked, from_plain, to_plain
from merging.processes import Processes

SCHEMA = "mergebound.piece/1"
Data = TypeVar("Data")


def digest(*parts: Any) -> str:
    """Return the hash of plain values (data classes, lists, mappings, sets, numbers, text)."""
    text = json.dumps(to_plain(parts), sort_keys=True, ensure_ascii=False, default=sorted)
    return hashlib.sha256(files.encoded(text)).hexdigest()[:24]


def digest_params(params: Params) -> str:
    """Return the hash of names, shapes, dtypes and bytes of parameters."""
    whole = hashlib.sha256()
    for name, value in params.items():
        array = value.detach().cpu().contiguous().view(torch.uint8 if value.ndim else value.dtype)
        whole.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        whole.update(array.numpy().tobytes())
    return whole.hexdigest()[:24]


@dataclass(frozen=True)
class Piece:
    """The file of one result: under which name and key it is kept."""

    schema: str
    name: str
    key: str
    value: Any


@dataclass(frozen=True)
class Cache:
    """Results under ``folder``: data classes as NAME-HASH.json, tensors as NAME-HASH.pt. None keeps nothing.

    A file names what it keeps and has a digest (see :mod:`merging.records`): one cut short, changed or renamed, or with
    other fields, counts as absent and is made again. Of several processes the first reads and writes; the others
    get what it has read.
    """

    folder: Path | None
    processes: Processes = field(default_factory=Processes)

    def data(self, kind: type[Data], name: str, key: str, make: Callable[[], Data]) -> Data:
        """Return the data class kept under (name, key), or make and keep it."""
        path = self._path(f"{name}-{key}.json")
        kept = self.processes.broadcast(_read(kind, path, name, key))
        if kept is not None:
            return kept
        value = make()
        if path is not None:
            write(path, files.encoded(records.to_json(_piece(name, key, to_plain(value)))))
        return value

    def has(self, name: str, key: str) -> bool:
        """Whether a data class is kept under (name, key)."""
        path = self._path(f"{name}-{key}.json")
        return self.processes.broadcast(path is not None and path.is_file())

    def load(self, name: str, key: str) -> Mapping[str, Any] | None:
        """Return the mapping of tensors and plain values kept under (name, key), or None."""
        return self.processes.broadcast(_load(self._path(f"{name}-{key}.pt"), name, key))

    def save(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a mapping of tensors and plain values under (name, key)."""
        path = self._path(f"{name}-{key}.pt")
        if path is not None:
            records.save(path, _piece(name, key, dict(value)))

    def _path(self, name: str) -> Path | None:
        if self.folder is None or self.processes.rank:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


def _piece(name: str, key: str, value: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "name": name, "key": key, "value": value}


def _read(kind: type[Data], path: Path | None, name: str, key: str) -> Data | None:
    if path is None or not path.is_file():
        return None
    try:
        return from_plain(kind, _value(records.read_json(path, SCHEMA, str(path), ""), name, key))
    except InputError:
        path.unlink(missing_ok=True)
        return None


def _load(path: Path | None, name: str, key: str) -> Mapping[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        return checked(dict[str, Any], _value(records.load(path, SCHEMA, str(path), ""), name, key))
    except InputError:
        path.unlink(missing_ok=True)
        return None


def _value(content: Mapping[str, Any], name: str, key: str) -> Any:
    """Return what a piece keeps.

    Raises:
        InputError: another piece's file under this name, or other fields.
    """
    found = checked(Piece, content)
    if (found.name, found.key) != (name, key):
        refuse("piece", expected=f"{name}-{key}", got=f"{found.name}-{found.key}", cure="make it again")
    return found.value


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or not there (an older one stays).

    Raises:
        InputError: the disk refuses the bytes.
    """
    files.write(path, lambda file: file.write(content))
