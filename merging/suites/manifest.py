"""The manifest of a shipped suite: what its folder holds, and the sha256 of every file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.checkpoints import sha256

MANIFEST = "manifest.json"


def read_manifest(folder: Path, schema: str, cure: str = "install the package again") -> dict[str, Any]:
    """Read a suite's manifest and check every file it names.

    Args:
        folder: of the suite's files.
        schema: what the manifest must say it is, e.g. ``mergebound.text8/1``.
        cure: what to do about a folder that is not whole.

    Raises:
        InputError: no manifest, another one, a missing or changed file.
    """
    path = Path(folder) / MANIFEST
    what = f"suite {schema.partition('.')[2].partition('/')[0]}"
    if not path.is_file():
        refuse(f"{what}, {path}", expected="the suite's manifest", got="nothing there", cure=cure)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["schema"]
        files: dict[str, str] = manifest["sha256"]
    except (ValueError, LookupError, TypeError) as error:
        refuse(f"{what}, {path}", expected="the suite's manifest", got=f"{type(error).__name__} in it", cure=cure)
    if found != schema:
        refuse(f"{what}, {path}", expected=f"schema {schema}", got=repr(found), cure=cure)
    for name, digest in files.items():
        got = sha256(path.parent / name)[:12] if (path.parent / name).is_file() else "nothing there"
        if got != digest[:12]:
            refuse(f"{what}, {name}", expected=f"sha256 {digest[:12]}…", got=got, cure=cure)
    return manifest
