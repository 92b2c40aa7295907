"""Stages of a build: files that are kept under a digest of what they are made of, so that a build can be resumed.

A stage's file is there as a whole or not at all, and a record beside it says what it was made of and its sha256. A file
that is no longer what its record says is made again. Code is no part of the digest: after a change of what a stage
does, name another work folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints import sha256
from merging.commands import plain
from merging.files import check_folder, encoded, replacing, write


class Stages:
    """The stages of one build, in a work folder that is made where it is missing.

    Raises:
        InputError: a folder that cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = check_folder(folder, "work folder", parents=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, made_of: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """Return a stage's file: the one that is kept, or one that is made now.

        Args:
            name: of the stage, with the file's suffix; progress on stderr names it.
            made_of: all that the content depends on: settings and sha256 of files, as plain values.
            make: writes the file at the path it is given.

        Raises:
            InputError: no room on the disk; whatever ``make`` raises, and then nothing is kept.
        """
        text = json.dumps(made_of, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(encoded(text)).hexdigest()
        stem, suffix = Path(name).stem, Path(name).suffix
        path = self.folder / f"{stem}-{key[:16]}{suffix}"
        record = path.with_name(f"{path.name}.made_of.json")
        if _is_whole(path, record):
            return path
        _say(f"{name} …")
        started = time.monotonic()
        with replacing(path, f"stage {name}") as temporary:
            make(temporary)
        content = {"sha256": sha256(path), "made_of": made_of}
        write(record, lambda file: file.write(encoded(json.dumps(content, indent=1, ensure_ascii=False))))
        _say(f"{name} done in {time.monotonic() - started:.1f} s")
        return path


def check_counts(counts: Mapping[str, int]) -> None:
    """Check settings of a build that count something.

    Raises:
        InputError: one below 1.
    """
    for name, value in counts.items():
        if value < 1:
            refuse(name, expected="at least 1", got=value, cure="raise it")


def write_trained(tensors: Mapping[str, Tensor], losses: Sequence[float], path: Path) -> None:
    """Write what a training gave, with its losses."""
    save_file(dict(tensors), path, metadata={"loss": json.dumps(losses)})


def read_losses(path: Path) -> list[float]:
    """Read the losses that :func:`write_trained` wrote."""
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["loss"])


def _is_whole(path: Path, record: Path) -> bool:
    """Whether a file is there and is what its record says; a file without a record may belong to a killed run."""
    if not (path.is_file() and record.is_file()):
        return False
    try:
        said = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, LookupError, TypeError):
        return False
    return said == sha256(path)


def _say(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)
