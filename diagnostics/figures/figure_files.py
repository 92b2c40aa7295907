"""The folder of figures: written as a whole, and cleared of what an earlier run wrote and this one does not."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from diagnostics.figures.svg import standalone
from diagnostics.page import Drawing
from diagnostics.work.cache import write

MANIFEST = "manifest.json"
"""Command -> file -> sha256 of what it wrote last, in the folder of figures."""


def write_figures(folder: Path, command: str, drawings: Mapping[str, Drawing]) -> None:
    """Write each figure as SVG and PNG; remove those of the command's last run that are no longer among them.

    A file that the manifest does not name, or that was changed since, is somebody else's: it stays (unless a figure of
    that name is written).

    Raises:
        InputError: the disk refuses the bytes.
    """
    folder.mkdir(exist_ok=True)
    files: dict[str, bytes] = {}
    for name, drawing in drawings.items():
        files[f"{name}.svg"] = standalone(drawing.svg).encode()
        files[f"{name}.png"] = base64.b64decode(drawing.png)
    manifest = _read(folder / MANIFEST)
    for name, digest in manifest.get(command, {}).items():
        path = folder / name
        if name not in files and path.is_file() and _digest(path.read_bytes()) == digest:
            path.unlink()
    for name, content in files.items():
        write(folder / name, content)
    manifest[command] = {name: _digest(content) for name, content in files.items()}
    write(folder / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Return the manifest; one that is missing or damaged names nothing, so that nothing is removed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or not all(isinstance(files, dict) for files in content.values()):
        return {}
    return {c: {n: str(d) for n, d in files.items() if Path(n).name == n} for c, files in content.items()}
