"""Weights out of pickled modules, as published experts come, without running anything that the file names."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints.formats import check_file
from merging.checkpoints.unpickling import Held, Items, Stub, Unpickler, Unreadable
from merging.records import DAMAGE, DEPTH

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number in what ``torch.save`` wrote before PyTorch 1.6."""
_MOST = 100_000
"""Most names of one file; modules that hold each other could spell without end."""


@dataclass(frozen=True)
class Pickled:
    """State dict of a pickled module, by the names of ``module.state_dict()``; tied weights stand under all theirs.

    ``imports`` are the functions and classes that the file names and that loading it would have imported: none of a
    plain state dict.
    """

    state: dict[str, Tensor]
    imports: tuple[str, ...]


def read_pickled(path: Path) -> Pickled:
    """Read the weights of a pickled module (or of several in a mapping, or of a state dict), running nothing.

    Every name but those of tensors is replaced by an inert class; the state dict is what the instances hold under
    ``_parameters``, ``_buffers`` (persistent ones) and ``_modules``. Both formats of ``torch.save`` are read.

    Raises:
        InputError: a missing, damaged or forged file, one that is no pickle, or one without modules and tensors.
    """
    what = f"pickle {path}"
    kind = check_file(path)
    if kind == "safetensors":
        refuse(what, expected="a file of torch.save", got="a safetensors file", cure="use it as it is")
    try:
        content, imports = _read_zip(path) if kind == "zip" else _read_legacy(path)
        state = dict(_state(content))
    except (*DAMAGE, RecursionError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:120]
        refuse(what, expected="a complete file of torch.save", got=got, cure="copy the file again")
    if not state:
        cure = "save module.state_dict() where the file came from"
        refuse(what, expected="a pickled module", got=f"no weights among {', '.join(imports[:3]) or 'it'}", cure=cure)
    return Pickled(state, tuple(imports))


def _read_zip(path: Path) -> tuple[Any, list[str]]:
    """Read the archive that ``torch.save`` writes; the zip's own checksums are checked."""
    size = path.stat().st_size
    storages: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise Unreadable("compressed entries")
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise Unreadable("entries larger than the file")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise Unreadable("numbers of a big-endian machine")

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                bytes_ = bytearray(entry.file_size)
                with archive.open(entry) as file:
                    file.readinto(bytes_)  # pyright: ignore[reportAttributeAccessIssue]
                    if file.read(1):  # the checksum is looked at when the end is reached
                        raise Unreadable("an entry longer than it says")
                storages[key] = torch.frombuffer(bytes_, dtype=torch.uint8) if bytes_ else torch.empty(0).byte()
            return _numbers(storages[key], dtype, count)

        with archive.open(pickles[0]) as file:
            reader = Unpickler(file, storage, size)
            return reader.load(), reader.imports


def _read_legacy(path: Path) -> tuple[Any, list[str]]:
    """Read three pickles of versions, the content, the keys of its storages, and the storages themselves."""
    size = path.stat().st_size
    storages: dict[str, tuple[Tensor, int]] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            if not 0 <= count * dtype.itemsize <= size - sum(len(bytes_) for bytes_, _ in storages.values()):
                raise Unreadable(f"{count} numbers in a file of {size} bytes")
            storages[key] = torch.zeros(count * dtype.itemsize, dtype=torch.uint8), dtype.itemsize
        return _numbers(storages[key][0], dtype, count)

    with open(path, "rb") as file:
        heads = [Unpickler(file, storage, size).load()]
        if heads[0] != _MAGIC:
            raise Unreadable("a pickle that torch.save did not write")
        heads += [Unpickler(file, storage, size).load() for _ in range(2)]
        if isinstance(heads[2], dict) and heads[2].get("little_endian") is False:
            raise Unreadable("numbers of a big-endian machine")
        reader = Unpickler(file, storage, size)
        content = reader.load()
        keys = Unpickler(file, storage, size).load()
        if not isinstance(keys, list) or set(keys) != set(storages):
            raise Unreadable("other storages than it names")
        for key in keys:
            bytes_, width = storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count * width != len(bytes_):
                raise Unreadable("a storage of another size than it says")
            if file.readinto(bytes_.numpy()) != len(bytes_):  # pyright: ignore[reportArgumentType]
                raise Unreadable("storages cut short")
    return content, reader.imports


def _numbers(bytes_: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if count < 0 or count * dtype.itemsize > len(bytes_):
        raise Unreadable(f"{count} numbers in a storage of {len(bytes_)} bytes")
    return bytes_[: count * dtype.itemsize].view(dtype)


def _state(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of a module, of a state dict, or of those in a mapping (by its keys, if several)."""
    if _is_module(content):
        names = _walk(content, "", [])
    elif isinstance(content, Mapping):
        named = {str(key): value for key, value in content.items() if _is_module(value) or _is_state(value)}
        if _is_state(content):
            named = {"": content}
        whole = len(named) == 1
        names = (pair for key, value in named.items() for pair in _part("" if whole else f"{key}.", value))
    else:
        return
    for count, pair in enumerate(names):
        if count == _MOST:
            raise Unreadable(f"more than {_MOST} names")
        yield pair


def _part(prefix: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if _is_module(value):
        yield from _walk(value, prefix, [])
    else:
        yield from ((prefix + key, part.tensor) for key, part in value.items() if isinstance(part, Held))


def _is_state(value: Any) -> bool:
    """Whether a value is a mapping of names to tensors, with plain values among them at most."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    tensors = sum(isinstance(part, Held) for part in value.values())
    return tensors > 0 and not any(_is_module(part) or isinstance(part, Mapping) for part in value.values())


def _is_module(value: Any) -> bool:
    return isinstance(value, Stub) and isinstance(value.state, dict) and isinstance(value.state.get("_modules"), dict)


def _walk(module: Any, prefix: str, above: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield what ``module.state_dict()`` would hold."""
    if id(module) in above or len(above) > DEPTH:
        raise Unreadable(f"modules that hold themselves, or nested deeper than {DEPTH}")
    state = module.state
    hidden = state.get("_non_persistent_buffers_set", ())
    hidden = hidden.items if isinstance(hidden, Items) else ()
    for kind in ("_parameters", "_buffers"):
        tensors = state.get(kind, {})
        if not isinstance(tensors, dict):
            raise Unreadable(f"{prefix}{kind} of an unknown kind")
        for name, value in tensors.items():
            if value is None or (kind == "_buffers" and name in hidden):
                continue
            if not isinstance(value, Held):
                raise Unreadable(f"{prefix}{name}: a {getattr(value, 'origin', type(value).__name__)}, no plain tensor")
            yield f"{prefix}{name}", value.tensor
    for name, part in state["_modules"].items():
        if part is None:
            continue
        if not _is_module(part):
            raise Unreadable(f"{prefix}{name}: a {getattr(part, 'origin', type(part).__name__)}, no module")
        yield from _walk(part, f"{prefix}{name}.", [*above, id(module)])
