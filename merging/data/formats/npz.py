"""NumPy archives: arrays of inputs (numbers, images or texts) and of labels, found by name."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bounds.types import refuse
from merging.data.columns import Columns, Format, listed, texts
from merging.data.examples import CHUNK
from merging.data.source import LABEL, Source

INPUTS = ("inputs", "images", "x")
LABELS = ("labels", LABEL, "y")
"""Arrays that are found by themselves; of a split, with ``_SPLIT`` behind or ``SPLIT_`` before."""
CLASSES = "class_names"
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError, struct.error, NotImplementedError)


def read(path: Path, source: Source) -> Columns:
    """Read the arrays; those that the archive does not pack are mapped, the others are held in memory.

    Raises:
        InputError: no archive, a missing array, several that could be meant, pickled objects, different lengths.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except DAMAGE as error:
        cure = "write it with numpy.savez(file, inputs=..., labels=...)"
        refuse(f"data {path}", expected="a NumPy archive (.npz)", got=str(error).split("\n")[0][:80], cure=cure)
    wanted = source.texts or ((source.image,) if source.image else None)
    if wanted is None:
        columns = [_array(path, source, there, INPUTS)]
    else:
        columns = [_array(path, source, there, (name,)) for name in wanted]
    names = (LABELS if source.label == LABEL else (source.label,)) if source.label else ()
    labels = _array(path, source, there, names) if names else None
    _check_sizes(path, [*columns, *([] if labels is None else [labels])])
    own = _one(path, CLASSES) if CLASSES in there else None

    def where(row: int) -> str:
        return f"data {path}, row {row}"

    inputs: Any = columns[0]
    if columns[0].dtype.kind == "U" or source.texts:
        inputs = texts([_texts(column, where) for column in columns])
    own_names = tuple(map(str, own)) if own is not None and own.dtype.kind == "U" and own.ndim == 1 else None
    return Columns(
        inputs=inputs,
        labels=None if labels is None else [*labels],
        names=own_names,
        where=where,
        files=(path,),
        root=path.parent,
    )


def _array(path: Path, source: Source, there: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the one array of these names that is there."""
    split = source.split
    wanted = [*names] if split is None else [n for name in names for n in (f"{name}_{split}", f"{split}_{name}")]
    found = [name for name in wanted if name in there]
    if len(found) != 1:
        labelling = " or, for labels, write label: null where there are none" if LABEL in names else ""
        cure = f"name the arrays with image, text or label, and their split with split{labelling}"
        got = f"{' and '.join(found)}" if found else f"arrays {listed(there)}"
        refuse(f"data {path}", expected=f"one array named {' or '.join(wanted)}", got=got, cure=cure)
    return _one(path, found[0])


def _one(path: Path, name: str) -> np.ndarray:
    try:
        return _mapped(path, name)
    except DAMAGE as error:
        pickled = "pickle" in str(error)
        expected = "numbers or texts" if pickled else "a whole array"
        got = "pickled objects, which could run code" if pickled else str(error).split("\n")[0][:80]
        cure = "write the array with a plain dtype, e.g. numpy.array(texts, dtype=str)" if pickled else "copy it again"
        refuse(f"data {path}, array {name}", expected=expected, got=got, cure=cure)


def _mapped(path: Path, name: str) -> np.ndarray:
    """Return an array, mapped where it lies in the archive as it is.

    A local header of the zip format is 30 bytes, the last four of them the lengths of the name and of the extra field
    that come before the content.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[name]
        with archive.open(member) as content:
            while content.read(CHUNK):  # at its end the checksum is compared, which a mapping would not do
                pass
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError("pickled objects")
        if 0 in shape or not shape:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[name]
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _check_sizes(path: Path, arrays: Sequence[np.ndarray]) -> None:
    shapes = [array.shape for array in arrays]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        got, cure = " and ".join(map(str, shapes)), "align the examples"
        refuse(f"data {path}", expected="inputs and labels with one row per example", got=f"shapes {got}", cure=cure)


class _Texts(Sequence[str]):
    """An array of texts, as Python's."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: Any) -> str:
        return str(self.values[row])


def _texts(column: np.ndarray, where: Any) -> Sequence[str]:
    if column.dtype.kind != "U" or column.ndim != 1:
        got = f"{column.dtype} of shape {column.shape}"
        refuse(where(0), expected="one text per row", got=got, cure="name an array of texts")
    return _Texts(column)


FORMATS = {"npz": Format((".npz",), read, lambda path: path.is_file() and zipfile.is_zipfile(path))}
