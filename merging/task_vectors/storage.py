"""Where task vectors live: in memory, or in one safetensors file that is written once and memory-mapped.

The file holds θ_0 (``base.NAME``) and the stacked task vectors [T, ...] (``tau.NAME``) of every parameter, each tensor
at a multiple of 64 bytes, as in memory, so that both give the same arithmetic bit for bit. Any safetensors reader opens
it.
"""

from __future__ import annotations

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
from torch import Tensor

from bounds.types import Params, refuse
from merging.files import replacing
from merging.records import tensor_digest
from merging.task_vectors.arithmetic import run
from merging.task_vectors.mapped import NAMES, TYPES, header, read_header, verify


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
        if self.dtype is not None and self.dtype not in NAMES:
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
    metadata = {"names": list(names), "order": list(base), "sources": dict(sources)}
    head, offsets, size = header(content, metadata)
    with replacing(storage.file, "task vectors") as temporary:
        with open(temporary, "rb+") as opened:
            opened.write(head)
            os.posix_fallocate(opened.fileno(), 0, size)  # a mapped write to a full disk would kill the process
        room: Any = torch.UntypedStorage.from_file(str(temporary), shared=True, nbytes=size)
        tensors = {name: _view(room, offsets[name], *content[name]) for name in content}
        for key, value in base.items():
            tensors[f"base.{key}"].copy_(value)
        yield {key: tensors[f"tau.{key}"] for key in base}
        digests = dict(zip(tensors, run(tensor_digest, list(tensors.values())), strict=True))
        with open(temporary, "rb+") as opened:
            opened.write(header(content, metadata, digests)[0])


def read(file: Path, *, verified: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Map a file written through :func:`destination`: θ_0, stacked task vectors, names.

    Every tensor is read once and checked, unless ``verified`` says that this was done: then only the header is read.

    Raises:
        InputError: a missing, cut, changed or foreign file.
    """
    found = read_header(file)
    if not verified:
        verify(file, found)
    room = np.memmap(file, mode="r")  # shared with the page cache: not charged to the process

    def tensor(name: str) -> Tensor:
        place = found.places[name]
        start, end = place.data_offsets
        part = torch.from_numpy(room[found.start + start : found.start + end])  # a storage of its own, not the file's
        return part.view(TYPES[place.dtype]).view(place.shape)

    order = found.order
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        base, stacked = ({key: tensor(f"{kind}.{key}") for key in order} for kind in ("base", "tau"))
    return base, stacked, [*found.names]


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
    found = read_header(storage.file)
    kept = {"names": tuple(names), "order": tuple(base), "sources": dict(sources)}
    precision = {key: NAMES[storage.of(value)] for key, value in base.items()}
    same = all(getattr(found, key) == value for key, value in kept.items())
    if not same or any(found.places[f"tau.{key}"].dtype != value for key, value in precision.items()):
        refuse(
            f"task vectors {storage.file}",
            expected="a new file, or one made from the same experts in the same precision",
            got="other task vectors",
            cure="name another file or delete this one",
        )
    return True


def _view(room: torch.UntypedStorage, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Tensor over a part of a storage."""
    return torch.empty(0, dtype=dtype).set_(room, offset // dtype.itemsize, shape)  # pyright: ignore
