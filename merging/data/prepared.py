"""What a network reads of examples (token ids, pixels), made once in batches: in memory, or in a file that is mapped.

The file is a safetensors file: any reader of the format opens it. It is written front to back beside its final name,
which it takes when it is whole; its header holds the sha256 of every tensor, and every use reads it through once.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from pydantic_core import from_json
from torch import Tensor

from bounds.types import InputError, Inputs, leaves, refuse
from merging.data.examples import CHUNK
from merging.files import check_folder, replacing
from merging.plain import checked
from merging.rows import Progress, silent

BATCH = 256
"""Examples that are prepared together."""
ALIGNMENT = 64
SCHEMA = "mergebound.prepared/1"
_ONE = "inputs"
"""The name in the file of inputs that are one tensor."""
TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
Prepare = Callable[[Sequence[Any]], Inputs]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the file says of itself: whose it is, its tensors in order, their sha256; ``mapping``: not just a tensor."""

    schema: str
    key: str
    count: int
    mapping: bool
    order: tuple[str, ...]
    digests: dict[str, str]


def prepared(
    inputs: Sequence[Any],
    prepare: Prepare,
    key: str,
    folder: Path | None,
    what: str,
    progress: Progress = silent,
) -> Inputs:
    """Return ``prepare`` of all N inputs, computed in batches of 256; with a ``folder`` it is kept there and mapped.

    A mapped tensor is read from the file where it is used and never held as a whole; it must not be written to. The
    file is found again by ``key`` and N; one that is damaged is made again, with a warning that says so. Bytes of a
    row are those that ``prepare`` gives for its batch.

    Args:
        inputs: N raw examples.
        prepare: a batch of them -> a tensor or a mapping of tensors, the example first, all batches of one shape
            beyond it.
        key: identifies inputs and preparation: e.g. :meth:`merging.data.Examples.key` with the tokenizer's digest.
        folder: where it is kept; made if it is not there. None: in memory.
        what: how an error calls the inputs.
        progress: is told each batch.

    Raises:
        InputError: no inputs; a result that is no tensor with a row per example; batches of different names, shapes or
            types; a folder that cannot be written.
    """
    if len(inputs) == 0:
        refuse(what, expected="at least one example", got="none", cure="name another file or split")
    batches = _Batches(inputs, prepare, what, progress)
    if folder is None:
        return _in_memory(batches)
    check_folder(folder, "prepared data", parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(f'{key} {len(inputs)}'.encode()).hexdigest()[:32]}.safetensors"
    if file.exists():
        try:
            return _opened(file, key, len(inputs))
        except InputError as error:
            warnings.warn(f"{what} is prepared again: {error}", stacklevel=2)
    with replacing(file, "prepared data") as temporary, open(temporary, "rb+") as opened:
        _written(opened, batches, key)
    return _opened(file, key, len(inputs), verified=True)


class _Batches:
    """The prepared batches, one after the other, each checked against the first."""

    def __init__(self, inputs: Sequence[Any], prepare: Prepare, what: str, progress: Progress) -> None:
        self.count, self.mapping = len(inputs), False
        self._inputs, self._prepare, self._what, self._progress = inputs, prepare, what, progress
        self._form: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}

    def __iter__(self) -> Any:
        for number in self._progress(range(-(-self.count // BATCH)), f"preparing {self._what}"):
            start = number * BATCH
            rows = range(start, min(start + BATCH, self.count))
            yield start, self._checked(self._prepare([self._inputs[row] for row in rows]), rows)

    def _checked(self, batch: Inputs, rows: range) -> dict[str, Tensor]:
        where, cure = f"prepared {self._what}, examples {rows[0]}..{rows[-1]}", "correct the preprocessing"
        parts = leaves(batch) if isinstance(batch, (Tensor, Mapping)) else []
        if not parts or not all(isinstance(part, Tensor) and part.ndim and len(part) == len(rows) for part in parts):
            got = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
            got = ", ".join(map(str, got)) or type(batch).__name__
            refuse(where, expected=f"tensors with {len(rows)} rows", got=got, cure=cure)
        self.mapping = not isinstance(batch, Tensor)
        named = {_ONE: batch} if isinstance(batch, Tensor) else dict(batch)
        form = {name: (part.dtype, tuple(part.shape[1:])) for name, part in named.items()}
        if unknown := [dtype for dtype, _ in form.values() if dtype not in NAMES]:
            refuse(where, expected="numbers of a usual type", got=unknown[0], cure="prepare float32 or int64")
        self._form = self._form or form
        if form != self._form:
            cure = "pad texts to one length, and resize images to one size"
            refuse(where, expected=f"{_shown(self._form)} per example", got=_shown(form), cure=cure)
        return {name: part.detach().cpu().contiguous() for name, part in named.items()}


def _shown(form: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(shape)} {str(dtype)[6:]}" for name, (dtype, shape) in form.items())


def _in_memory(batches: _Batches) -> Inputs:
    room: dict[str, Tensor] = {}
    for start, batch in batches:
        room = room or {name: part.new_empty((batches.count, *part.shape[1:])) for name, part in batch.items()}
        for name, part in batch.items():
            room[name][start : start + len(part)] = part
    return room if batches.mapping else room[_ONE]


def _written(file: BinaryIO, batches: _Batches, key: str) -> None:
    """Write all batches where they belong; by calls, not through a mapping: a full disk is an error, not a signal."""
    form: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    begin, hashes = 0, {}

    def head(digests: dict[str, str]) -> bytes:
        order = tuple(form)
        kept = Kept(schema=SCHEMA, key=key, count=batches.count, mapping=batches.mapping, order=order, digests=digests)
        return _header(form, places, batches.count, kept)

    for start, batch in batches:
        if not form:
            form, places = batch, _places(batch, batches.count)
            hashes = {name: _hash(name, part.dtype, (batches.count, *part.shape[1:])) for name, part in batch.items()}
            begin = len(head({name: "0" * 64 for name in batch}))
        for name, part in batch.items():
            content = memoryview(part.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
            hashes[name].update(content)
            file.seek(begin + places[name] + start * (content.nbytes // len(part)))
            file.write(content)
    file.seek(0)
    file.write(head({name: found.hexdigest() for name, found in hashes.items()}))
    file.truncate(begin + _size(form, batches.count))
    file.flush()


def _places(form: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """Return where each tensor begins; those of wider numbers first, so that none needs a gap to be aligned."""
    places, position = {}, 0
    for name in sorted(form, key=lambda name: -form[name].dtype.itemsize):
        places[name] = position
        position += count * form[name][0].nbytes
    return places


def _size(form: Mapping[str, Tensor], count: int) -> int:
    return sum(count * part[0].nbytes for part in form.values())


def _header(form: Mapping[str, Tensor], places: Mapping[str, int], count: int, kept: Kept) -> bytes:
    """Return the header of a safetensors file: its length, then JSON, filled up to ``ALIGNMENT`` with blanks."""
    entries: dict[str, Any] = {"__metadata__": {"prepared": json.dumps(vars(kept), sort_keys=True)}}
    for name, start in places.items():
        part = form[name]
        end = start + count * part[0].nbytes
        shape = [count, *part.shape[1:]]
        entries[name] = {"dtype": NAMES[part.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _opened(file: Path, key: str, count: int, *, verified: bool = False) -> Inputs:
    """Map a file, after its content was checked.

    Raises:
        InputError: another key, or other content than was written.
    """
    what, cure = f"prepared data {file}", "delete the file"
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > os.fstat(opened.fileno()).st_size:
                raise ValueError("a cut file")
            entries = from_json(opened.read(length))
        kept = checked(Kept, from_json(entries["__metadata__"]["prepared"]), what, cure)
        places = {name: entries[name] for name in kept.order}
        size = 8 + length + max(place["data_offsets"][1] for place in places.values())
        found = (kept.schema, kept.key, kept.count, file.stat().st_size)
        if found != (SCHEMA, key, count, size):
            raise ValueError("a cut file, or one of other data")
        if not verified:
            for name, place in places.items():
                if _part_sha256(file, 8 + length, name, place) != kept.digests[name]:
                    raise ValueError(f"other numbers in {name}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
            room = torch.from_numpy(np.memmap(file, mode="r"))
        tensors = {name: _tensor(room, 8 + length, place) for name, place in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        refuse(what, expected="the content that was written", got=f"{error}, damaged", cure=cure)
    return tensors if kept.mapping else tensors[_ONE]


def _tensor(room: Tensor, begin: int, place: Mapping[str, Any]) -> Tensor:
    start, end = place["data_offsets"]
    return room[begin + start : begin + end].view(TYPES[place["dtype"]]).view(place["shape"])


def _hash(name: str, dtype: torch.dtype, shape: Sequence[int]) -> Any:
    """Return the hash of a tensor before its numbers: they are no others than those of its form."""
    return hashlib.sha256(f"{name} {NAMES[dtype]} {list(shape)} ".encode())


def _part_sha256(file: Path, begin: int, name: str, place: Mapping[str, Any]) -> str:
    offsets = place["data_offsets"]
    whole, left = _hash(name, TYPES[place["dtype"]], place["shape"]), offsets[1] - offsets[0]
    with open(file, "rb") as opened:
        opened.seek(begin + offsets[0])
        while left > 0 and (part := opened.read(min(CHUNK, left))):
            whole.update(part)
            left -= len(part)
    return whole.hexdigest()
