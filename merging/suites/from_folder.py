"""A suite that ``python -m merging.suites.build`` made into a folder of one's own: found by the folder's path."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path

from bounds.types import refuse
from merging.suites.base import Suite
from merging.suites.manifest import MANIFEST
from merging.task_vectors import Storage

_SCHEMA = re.compile(r"mergebound\.(\w+)/\d+")


def is_suite_folder(text: str) -> bool:
    """Whether a path is a folder with a manifest."""
    return (Path(text) / MANIFEST).is_file()


def load(folder: Path, storage: Storage, known: Collection[str]) -> Suite:
    """Load the suite by the shipped suite of its kind, which the manifest's schema names: ``load(folder, storage)``.

    Args:
        folder: of the suite's files.
        storage: precision and place of the task vectors.
        known: names of the shipped suites.

    Raises:
        InputError: a manifest of no shipped suite that can be built; missing or changed files.
    """
    path = Path(folder) / MANIFEST
    try:
        schema = str(json.loads(path.read_text(encoding="utf-8"))["schema"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        schema = f"{type(error).__name__} in it"
    match = _SCHEMA.fullmatch(schema)
    module = import_module(f"merging.suites.{match[1]}") if match and match[1] in known else None
    if not hasattr(module, "load"):
        cure = "name a folder that python -m merging.suites.build made"
        refuse(f"suite {path}", expected="a shipped suite's manifest", got=schema[:60], cure=cure)
    return module.load(folder, storage)  # pyright: ignore[reportOptionalMemberAccess]
