"""Files that the program reads back: a schema's name, typed content, and a digest that every read checks.

The digest is the sha256 of names, dtypes, shapes, bytes of tensors and plain values, in their order. PyTorch does not
check the archive's own checksums, and JSON has none: without it a flipped bit would be read as a number. sha256 because
processors have instructions for it: of what hashlib offers it is the fastest on them, and it needs no dependency.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from torch import Tensor

from bounds.types import refuse
from merging.files import write
from merging.task_vectors.arithmetic import run

DIGEST = "digest"
"""The field that holds the digest of all others."""
DEPTH = 50
"""Deepest nesting of a record; a forged file could nest without end."""
DAMAGE = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError),
    *(ArithmeticError, MemoryError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a damaged or forged archive raises: the readers of zip, pickle and PyTorch each have their own."""
_NAMES = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch.storage UntypedStorage")
_STORAGE = re.compile(r"torch \w+Storage")
"""All that a pickle of tensors and plain values names; PyTorch allows more, such as a bytearray of any size."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content, which must name its ``schema``, with its digest.

    Raises:
        InputError: something else than tensors and plain values, or nested deeper than ``DEPTH``.
    """
    return {**content, DIGEST: digest(content)}


def unseal(content: Any, schema: str, what: str, cure: str) -> dict[str, Any]:
    """Return the content without its digest, after checking schema and digest.

    Raises:
        InputError: another schema, or content that is not what was written.
    """
    found = content.get("schema", "no schema") if isinstance(content, dict) else f"a {type(content).__name__}"
    if found != schema:
        refuse(what, expected=f"schema {schema}", got=str(found)[:60], cure=cure)
    rest = {name: value for name, value in content.items() if name != DIGEST}
    written, here = content.get(DIGEST), digest(rest, what, cure)
    if written != here:
        shown = f"sha256 {written[:12]}…" if isinstance(written, str) else "a digest"
        refuse(
            what,
            expected=f"the content that was written, {shown}",
            got=f"{here[:12]}…: damaged or changed since",
            cure=cure,
        )
    return rest


def digest(value: Any, what: str = "record", cure: str = "keep tensors and plain values only") -> str:
    """Return the sha256 of plain values and tensors (names, dtypes, shapes, bytes), in their order.

    Raises:
        InputError: anything else in ``value``, or too deep a nesting.
    """
    tensors: list[Tensor] = []
    try:
        text = json.dumps(_described(value, tensors))
    except TypeError as error:
        refuse(what, expected="tensors and plain values only", got=error, cure=cure)
    return hashlib.sha256("".join([text, *run(tensor_digest, tensors)]).encode()).hexdigest()


def _described(value: Any, tensors: list[Tensor], depth: int = 0) -> Any:
    """Return a value as JSON that tells its types apart; tensors are described, and gathered for their bytes.

    Raises:
        TypeError: it is neither, or nested too deeply.
    """
    if depth > DEPTH:
        raise TypeError(f"values nested deeper than {DEPTH}")
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": [str(value.dtype), list(value.shape), value.requires_grad]}
    if isinstance(value, Mapping):
        return {"mapping": [[_described(part, tensors, depth + 1) for part in item] for item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_described(part, tensors, depth + 1) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__}")


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's bytes, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(memoryview(flat.view(torch.uint8).numpy())).hexdigest()  # pyright: ignore


def save(path: str | Path, content: Mapping[str, Any], what: str = "output") -> None:
    """Write tensors and plain values with their digest, as ``torch.load(weights_only=True)`` reads them; atomically.

    Raises:
        InputError: see :func:`seal` and :func:`merging.files.replacing`.
    """
    sealed = seal(_compact(content))
    write(path, lambda file: torch.save(sealed, file), what)


def _compact(value: Any) -> Any:
    """Let tensors own their memory and numbers be Python's.

    Of a view the whole would be written, and NumPy's numbers by names that no reader follows.
    """
    if isinstance(value, Tensor):
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        return value.detach() if whole else value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {name: _compact(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_compact, value))
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def load(path: str | Path, schema: str, what: str, cure: str) -> dict[str, Any]:
    """Read what :func:`save` wrote, executing nothing, and check it; tensors come to the CPU.

    Raises:
        InputError: a missing, damaged, foreign or forged file, another schema, other content than was written.
    """
    path = _file(path, what, cure)
    size = path.stat().st_size
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile(f"{size} bytes of something else, or cut short")
        _check_archive(path, size)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content, size)
    except DAMAGE as error:
        expected = "a complete file of tensors and plain values only, as torch.save writes it"
        refuse(what, expected=expected, got=_line(error), cure=cure)
    return unseal(content, schema, what, cure)


def read_json(path: str | Path, schema: str, what: str, cure: str) -> dict[str, Any]:
    """Read a sealed JSON object.

    Raises:
        InputError: a missing or damaged file, another schema, other content than was written.
    """
    path = _file(path, what, cure)
    try:
        content = from_json(path.read_bytes(), allow_inf_nan=False)
    except (OSError, ValueError) as error:
        refuse(what, expected=f"JSON of schema {schema}", got=_line(error), cure=cure)
    return unseal(content, schema, what, cure)


def to_json(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return the text of a JSON object with its digest, as :func:`read_json` reads it."""
    return json.dumps(seal(content), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def _file(path: str | Path, what: str, cure: str) -> Path:
    path = Path(path)
    if not path.is_file():
        got = "nothing there" if not path.exists() else "a folder" if path.is_dir() else "no regular file"
        refuse(what, expected="a file", got=got, cure=cure)
    return path


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _check_archive(path: Path, size: int) -> None:
    """Check, before anything is unpacked, that an archive is as large as it says and names nothing but tensors.

    Raises:
        ValueError: it is not, or does.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed entries")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("entries larger than the file")
        pickled = archive.read(next((e for e in entries if e.filename.endswith("/data.pkl")), "data.pkl"))
    names = {str(argument) for code, argument, _ in pickletools.genops(pickled) if code.name.endswith("GLOBAL")}
    foreign = [name for name in names if name not in _NAMES and not _STORAGE.fullmatch(name)]
    if foreign:
        raise ValueError(f"it names {foreign[0][:60]}")


def _check_sizes(value: Any, size: int, depth: int = 0) -> None:
    """Check that no tensor is larger than the file: strides of 0 can make a byte a terabyte.

    Raises:
        ValueError: one is.
    """
    if isinstance(value, Tensor) and value.nbytes > size:
        raise ValueError(f"a tensor of {value.nbytes} bytes in a file of {size}")
    if isinstance(value, (dict, list, tuple)) and depth <= DEPTH:
        for part in value.values() if isinstance(value, dict) else value:
            _check_sizes(part, size, depth + 1)
