"""The folder of figures: written as a whole, and cleared of what an earlier run wrote and this one does not."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bounds.types import refuse
from diagnostics.figures.svg import Drawing, standalone
from diagnostics.work.cache import write
from merging import records
from merging.files import encoded
from merging.plain import from_plain, to_plain

MANIFEST = "manifest.json"
SCHEMA = "mergebound.figures/1"
LONGEST = 100
"""Characters of a figure's name; our own have fewer."""


@dataclass(frozen=True)
class Manifest:
    """Command -> file -> sha256 of what it wrote last, in the folder of figures."""

    schema: str
    commands: Mapping[str, Mapping[str, str]]


def write_figures(folder: Path, command: str, drawings: Mapping[str, Drawing]) -> None:
    """Write each figure as SVG and PNG; remove those of the command's last run that are no longer among them.

    A file that the manifest does not name, or that was changed since, is somebody else's: it stays (unless a figure of
    that name is written).

    Raises:
        InputError: the disk refuses the bytes; see :func:`read_manifest`.
    """
    folder.mkdir(exist_ok=True)
    commands = read_manifest(folder)
    files: dict[str, bytes] = {}
    for name, drawing in drawings.items():
        files[f"{name}.svg"] = encoded(standalone(drawing.svg))
        files[f"{name}.png"] = base64.b64decode(drawing.png)
    for name, digest in commands.get(command, {}).items():
        path = folder / name
        if name not in files and not path.is_symlink() and path.is_file() and _digest(path.read_bytes()) == digest:
            path.unlink()
    for name, content in files.items():
        write(folder / name, content)
    commands[command] = {name: _digest(content) for name, content in files.items()}
    content = to_plain(Manifest(SCHEMA, dict(sorted(commands.items()))))
    write(folder / MANIFEST, records.to_json(content, indent=1).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_manifest(folder: Path) -> dict[str, Mapping[str, str]]:
    """Return what commands have written into a folder of figures: command -> file -> sha256.

    Raises:
        InputError: the manifest is damaged, or was written by another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    what, cure = f"manifest of figures {path}", "delete it; figures of earlier runs then stay where they are"
    found = from_plain(Manifest, records.read_json(path, SCHEMA, what, cure), what, cure)
    for name in (name for files in found.commands.values() for name in files):
        if Path(name).name != name or name == ".." or len(name) > LONGEST:
            refuse(what, expected="names of files in its folder", got=repr(name), cure=cure)
    return dict(found.commands)
