"""The mapped file of task vectors: what its header says, and how both are checked before a number is used.

The header's metadata hold a sha256 of every tensor and one of the header itself. Tensors are read through once when the
file is opened, in parts of ``CHUNK`` bytes, so that checking costs time (about the speed of sha256) and no memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open

from bounds.types import refuse
from merging import records
from merging.params import finite as finite_numbers
from merging.plain import checked
from merging.task_vectors.arithmetic import run

SCHEMA = "mergebound.task_vectors/2"
ALIGNMENT = 64
CHUNK = 2**20
"""Bytes read at once: they stay in the processor's cache between their hash and the look for nan."""
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES = {name: dtype for dtype, name in NAMES.items()}
CURE = "delete it and write it again with --mapped"


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: dtype as safetensors names it, shape, first and last byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the file says of itself.

    ``names`` are the T tasks, ``order`` the parameters; ``sources`` what the experts were read from -> sha256;
    ``places`` and ``digests`` of the tensors ``base.NAME`` and ``tau.NAME``; ``start`` the byte where tensors begin.
    """

    schema: str
    names: tuple[str, ...]
    order: tuple[str, ...]
    sources: Mapping[str, str]
    digests: Mapping[str, str]
    places: Mapping[str, Place]
    start: int


def header(
    content: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, Any],
    digests: Mapping[str, str] | None = None,
) -> tuple[bytes, dict[str, int], int]:
    """Header of a file, position of each tensor in it, size of the whole; as long with ``digests`` as without.

    safetensors allows no gaps between tensors, so the rest of each 64 bytes is a tensor of its own, ``padding.N``.
    """
    entries: dict[str, Any] = {}
    starts: dict[str, int] = {}
    position = 0
    for number, (name, (dtype, shape)) in enumerate(content.items()):
        end = position + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        starts[name], position = position, end
        if gap := -end % ALIGNMENT:
            position = end + gap
            entries[f"padding.{number}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, position]}
    nothing = "0" * hashlib.sha256().digest_size * 2
    said = {**metadata, "schema": SCHEMA, "digests": digests or dict.fromkeys(content, nothing)}
    sealed = records.seal({**said, "places": entries})
    texts = {name: sealed[name] if isinstance(sealed[name], str) else json.dumps(sealed[name]) for name in said}
    text = json.dumps({"__metadata__": {**texts, records.DIGEST: sealed[records.DIGEST]}, **entries}).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    whole = len(text).to_bytes(8, "little") + text
    return whole, {name: len(whole) + start for name, start in starts.items()}, len(whole) + position


def read_header(file: Path) -> Header:
    """Read and check the header of a mapped file; no tensor is read.

    Raises:
        InputError: a missing, cut, changed or foreign file, or one whose parts do not agree.
    """
    what = f"task vectors {file}"
    if not Path(file).is_file():
        refuse(what, expected="a safetensors file", got="nothing there", cure="write it with --mapped")
    try:
        with safe_open(file, framework="np"):  # checks that the places fill the file, without gap or overlap
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            entries = from_json(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        refuse(what, expected="a complete safetensors file", got=str(error).splitlines()[0], cure=CURE)
    metadata = dict(entries.pop("__metadata__", {}))
    try:
        said = {name: from_json(text) for name, text in metadata.items() if name not in ("schema", records.DIGEST)}
    except ValueError as error:
        refuse(f"{what}, its metadata", expected="JSON", got=str(error).splitlines()[0], cure=CURE)
    content = records.unseal({**metadata, **said, "places": entries}, SCHEMA, what, CURE)
    found = checked(Header, {**content, "start": 8 + length}, what, CURE)
    _check(found, what)
    return found


def _check(found: Header, what: str) -> None:
    """Check that names, shapes, precisions and digests fit each other.

    Raises:
        InputError: they do not.
    """
    tasks, tensors = len(found.names), [f"{part}.{name}" for part in ("base", "tau") for name in found.order]
    if not tasks or len(set(found.names)) != tasks or len(set(tensors)) != len(tensors) or not tensors:
        refuse(what, expected="distinct names of tasks and parameters, at least one each", got="others", cure=CURE)
    given = [name for name in found.places if not name.startswith("padding.")]
    for held, of in ((given, "tensors"), (list(found.digests), "digests")):
        if sorted(held) != sorted(tensors):
            wrong = sorted({*held} ^ {*tensors})[:3]
            refuse(f"{what}, {of}", expected="base and tau of every parameter", got=f"others: {wrong}", cure=CURE)
    for name in tensors:
        place = found.places[name]
        base = found.places[f"base.{name.split('.', 1)[1]}"]
        expected = base.shape if name.startswith("base.") else (tasks, *base.shape)
        first, last = place.data_offsets
        if place.dtype not in TYPES or last - first != math.prod(place.shape) * TYPES[place.dtype].itemsize:
            got = f"{place.dtype} {list(place.shape)} in {last - first} bytes"
            refuse(f"{what}, {name}", expected="numbers of a float type", got=got, cure=CURE)
        if place.shape != expected:
            refuse(f"{what}, {name}", expected=list(expected), got=list(place.shape), cure=CURE)


def verify(file: Path, found: Header) -> None:
    """Read every tensor once and check its bytes, in parts, on PyTorch's number of threads.

    Raises:
        InputError: a tensor that is not what was written, or holds nan or inf.
    """
    names = list(found.digests)

    def one(name: str) -> str | None:
        place = found.places[name]
        whole, buffer = hashlib.sha256(), bytearray(CHUNK)
        position, finite = place.data_offsets[0], True
        with open(file, "rb", buffering=0) as opened:
            opened.seek(found.start + position)
            while position < place.data_offsets[1]:
                part = memoryview(buffer)[: min(CHUNK, place.data_offsets[1] - position)]
                if opened.readinto(part) != len(part):
                    return None
                whole.update(part)
                finite = finite and finite_numbers(torch.frombuffer(part, dtype=TYPES[place.dtype]))
                position += len(part)
        return whole.hexdigest() if finite else "nan or inf"

    for name, here in zip(names, run(one, names), strict=True):
        if here != found.digests[name]:
            what, got = f"task vectors {file}, {name}", here or "fewer bytes"
            if here == "nan or inf":
                refuse(what, expected="finite numbers", got=here, cure=CURE)
            expected = f"what was written, sha256 {found.digests[name][:12]}…"
            refuse(what, expected=expected, got=f"{got[:12]}…: damaged or changed since", cure=CURE)
