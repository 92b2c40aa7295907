"""Where task vectors live: in memory, or in one safetensors file that is written once and memory-mapped.

The file holds θ_0 (``base.NAME``) and the stacked task vectors [T, ...] (``tau.NAME``) of every parameter, each tensor
at a multiple of 64 bytes, as in memory, so that both give the same arithmetic bit for bit. Any safetensors reader opens
it.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bounds.types import Params, refuse
from merging.files import replacing

SCHEMA = "mergebound.task_vectors/1"
_ALIGNMENT = 64
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Storage:
    """How task vectors are kept.

    Raises:
        InputError: a dtype that is not a float type.
    """

    dtype: torch.dtype | None = None
    """Precision; by default each parameter's own, at least float32."""
    file: Path | None = None
    """The file that is mapped; by default they stay in memory."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _NAMES:
            refuse("storage of task vectors", expected="a float type", got=self.dtype, cure="use float32 or bfloat16")

    def of(self, value: Tensor) -> torch.dtype:
        """Return the precision in which a parameter's task vectors are kept."""
        return self.dtype or torch.promote_types(value.dtype, torch.float32)


@contextmanager
def destination(
    base: Params, names: Sequence[str], storage: Storage, sources: Mapping[str, str]
) -> Iterator[dict[str, Tensor]]:
    """Give room for the task vectors of T experts, name -> [T, ...], to be filled inside the block.

    A file appears under its name only after the block has ended well; its bytes are reserved on the disk beforehand.

    Args:
        base: θ_0.
        names: the T tasks.
        storage: precision and place.
        sources: what the experts are read from -> sha256, kept in the file.

    Raises:
        InputError: a folder that cannot be written, a disk without room.
    """
    shapes = {key: (len(names), *value.shape) for key, value in base.items()}
    if storage.file is None:
        yield {key: torch.empty(shapes[key], dtype=storage.of(value)) for key, value in base.items()}
        return
    content = {f"base.{key}": (value.dtype, tuple(value.shape)) for key, value in base.items()}
    content |= {f"tau.{key}": (storage.of(value), shapes[key]) for key, value in base.items()}
    metadata = {
        "schema": SCHEMA,
        "names": json.dumps(list(names)),
        "order": json.dumps(list(base)),
        "sources": json.dumps(dict(sources)),
    }
    header, offsets, size = _header(content, metadata)
    with replacing(storage.file, "task vectors") as temporary:
        with open(temporary, "rb+") as opened:
            opened.write(header)
            os.posix_fallocate(opened.fileno(), 0, size)  # a mapped write to a full disk would kill the process
        room: Any = torch.UntypedStorage.from_file(str(temporary), shared=True, nbytes=size)
        tensors = {name: _view(room, offsets[name], *content[name]) for name in content}
        for key, value in base.items():
            tensors[f"base.{key}"].copy_(value)
        yield {key: tensors[f"tau.{key}"] for key in base}


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Map a file written through :class:`Destination`: θ_0, stacked task vectors, names. Reads its header only.

    Raises:
        InputError: a missing, cut or foreign file.
    """
    metadata = read_metadata(file)
    order, names = json.loads(metadata["order"]), json.loads(metadata["names"])
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        room = torch.from_numpy(np.memmap(file, mode="r"))  # shared with the page cache: not charged to the process

    def tensor(name: str) -> Tensor:
        start, end = header[name]["data_offsets"]
        return (
            room[8 + length + start : 8 + length + end].view(_TYPES[header[name]["dtype"]]).view(header[name]["shape"])
        )

    return {key: tensor(f"base.{key}") for key in order}, {key: tensor(f"tau.{key}") for key in order}, names


def on_disk(tensor: Tensor, folder: Path) -> Tensor:
    """Move a tensor to a mapped file that has no name, so that it is gone with the process at the latest.

    Raises:
        InputError: a disk without room.
    """
    if tensor.numel() == 0:
        return tensor
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mergebound.") as file:
            os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
            result = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    except OSError as error:
        refuse(
            f"scores of a teacher in {folder}",
            expected=f"{tensor.nbytes / 1e9:.1f} GB of room",
            got=error.strerror or error,
            cure="free space or take fewer examples",
        )
    return result.view(tensor.shape).copy_(tensor)


def is_written(base: Params, names: Sequence[str], storage: Storage, sources: Mapping[str, str]) -> bool:
    """Whether the file is there already, made from the same sources.

    Raises:
        InputError: the file holds other task vectors, or is damaged.
    """
    if storage.file is None or not storage.file.exists():
        return False
    metadata = read_metadata(storage.file)
    kept = {"names": list(names), "order": list(base), "sources": dict(sources)}
    precision = {key: _NAMES[storage.of(value)] for key, value in base.items()}
    with safe_open(storage.file, framework="np") as opened:
        same = all(json.loads(metadata[key]) == value for key, value in kept.items())
        if not same or any(opened.get_slice(f"tau.{key}").get_dtype() != value for key, value in precision.items()):
            refuse(
                f"task vectors {storage.file}",
                expected="a new file, or one made from the same experts in the same precision",
                got="other task vectors",
                cure="name another file or delete this one",
            )
    return True


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of such a file: schema, and as JSON the names, the order of parameters and the sources.

    Raises:
        InputError: a missing, cut or foreign file.
    """
    what, cure = f"task vectors {file}", "write them again with --mapped"
    if not Path(file).is_file():
        refuse(what, expected="a safetensors file", got="nothing there", cure=cure)
    try:
        with safe_open(file, framework="np") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        refuse(what, expected="a complete safetensors file", got=str(error).splitlines()[0], cure=cure)
    if metadata.get("schema") != SCHEMA:
        refuse(what, expected=f"schema {SCHEMA}", got=metadata.get("schema", "no schema"), cure=cure)
    return metadata


def _header(
    content: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """Header of the file, position of each tensor in it, size of the whole.

    safetensors allows no gaps between tensors, so the rest of each 64 bytes is a tensor of its own, ``padding.N``.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    position = 0
    for number, (name, (dtype, shape)) in enumerate(content.items()):
        end = position + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        starts[name], position = position, end
        if gap := -end % _ALIGNMENT:
            position = end + gap
            entries[f"padding.{number}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, position]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}, len(header) + position


def _view(room: torch.UntypedStorage, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Tensor over a part of a storage."""
    return torch.empty(0, dtype=dtype).set_(room, offset // dtype.itemsize, shape)  # pyright: ignore
