"""What a file of weights is, by its first bytes: names lie (``pytorch_model.bin`` may be a pointer of Git LFS)."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from bounds.types import refuse

Format: TypeAlias = Literal["safetensors", "zip", "pickle"]
"""safetensors; the zip archive of ``torch.save``; a bare pickle, as ``torch.save`` wrote before PyTorch 1.6."""

_EXPECTED = "weights: a complete safetensors file, or a state dict of torch.save"
_FOREIGN = {
    b"GGUF": (
        "a GGUF file, whose weights are quantised",
        "use the original weights, or those of transformers' from_pretrained(FOLDER, gguf_file=FILE)",
    ),
    b"\x89HDF": ("HDF5, as TensorFlow writes it", "use the PyTorch weights of the same model"),
    b"version https://git-lfs": ("a pointer of Git LFS in place of the file", "run git lfs pull in its folder"),
    b"PK\x05\x06": ("an empty zip archive", "copy the file again"),
}
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HEADER = 10**8
"""Most bytes of a safetensors header; the library reads no longer one."""


def check_file(path: Path) -> Format:
    """Return the format of a file of weights.

    Raises:
        InputError: nothing there, no file, an empty one, or one of another format; the cure is for what it is.
    """
    what = f"weights {path}"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing there"
        refuse(what, expected=_EXPECTED, got=got, cure="check the path")
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        refuse(what, expected=_EXPECTED, got="an empty file", cure="copy the file again")
    for magic, (got, cure) in _FOREIGN.items():
        if head.startswith(magic):
            refuse(what, expected=_EXPECTED, got=got, cure=cure)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER:
        return "safetensors"  # before the rest: the length of its header may begin as a pickle does
    if head.startswith(b"PK\x03\x04"):
        return _checked_zip(path)
    if head.startswith(_PICKLE):
        return "pickle"
    tar = len(head) == 64 and tarfile.is_tarfile(path)
    got = "a tar archive, as torch.save wrote before PyTorch 0.4" if tar else f"a file beginning with {head[:12]!r}"
    cure = "load it with torch and save its state dict again" if tar else "check the path, or copy the file again"
    return refuse(what, expected=_EXPECTED, got=got, cure=cure)


def _checked_zip(path: Path) -> Format:
    what = f"weights {path}"
    if not zipfile.is_zipfile(path):
        refuse(what, expected="a complete archive of torch.save", got="one cut short", cure="copy the file again")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        cure = "save torch.jit.load(FILE, map_location='cpu').state_dict() with torch.save"
        refuse(what, expected=_EXPECTED, got="a TorchScript archive, which is a program", cure=cure)
    if any(name.endswith(".npy") for name in names):
        cure = "save the arrays as tensors with safetensors.torch.save_file"
        refuse(what, expected=_EXPECTED, got="arrays of NumPy", cure=cure)
    if not any(name.endswith("/data.pkl") for name in names):
        refuse(what, expected=_EXPECTED, got=f"a zip archive of {names[:3]}", cure="unpack it, or check the path")
    return "zip"
