"""A published suite on the disk: FOLDER/models/ORG/NAME, FOLDER/datasets/ORG/NAME, the suite file beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bounds.types import refuse
from merging.files import check_destination, encoded, write
from merging.suites import from_file
from merging.suites.base import Suite
from merging.suites.published.table import SIZES, DataSet, PublishedSuite, find, prompts
from merging.task_vectors import Storage

FOLDER_VARIABLE = "MERGEBOUND_HUB"
MARK = ".mergebound-fetching"
"""A file in the folder of a repository whose download has begun and not ended."""
DATA = (".parquet", ".tar", ".arrow")
WEIGHTS = (".safetensors", ".bin")
_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})")


def hub_folder() -> Path:
    """Return where fetched repositories are: what MERGEBOUND_HUB names, else a folder of the user's cache."""
    given = os.environ.get(FOLDER_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given).expanduser() if given else Path(home) / "mergebound" / "hub"


def model_folder(folder: Path, repository: str) -> Path:
    """Return where a model's repository is."""
    return folder / "models" / repository


def data_folder(folder: Path, repository: str) -> Path:
    """Return where a data set's repository is."""
    return folder / "datasets" / repository


def load(text: str, storage: Storage) -> Suite:
    """Write the suite file of a published suite beside its fetched files, and load it as any suite file.

    Raises:
        InputError: an unknown name, files that were not fetched; see :func:`merging.suites.from_file.load`.
    """
    suite, folder = find(text), hub_folder()
    lacking = missing(suite, folder)
    if lacking:
        place, reason = next(iter(lacking.items()))
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        cure = f"mergebound suite fetch {text}, or name a folder that has it with {FOLDER_VARIABLE}"
        refuse(f"suite {text}", expected=f"its files in {place}{more}", got=reason, cure=cure)
    return from_file.load(write_suite(suite, folder), storage)


def write_suite(suite: PublishedSuite, folder: Path) -> Path:
    """Write the suite file, unless it is there already as it should be; return its path."""
    path, content = folder / suite.file, encoded(suite_text(suite))
    if not (path.is_file() and path.read_bytes() == content):
        check_destination(path, "suite file")
        write(path, lambda file: file.write(content))
    return path


def missing(suite: PublishedSuite, folder: Path) -> dict[Path, str]:
    """Return folder -> what is wrong with it, of every repository that is not there as a whole."""
    found: dict[Path, str | None] = {}
    for repository in (suite.base, *suite.experts.values()):
        place = model_folder(folder, repository)
        found[place] = _lack(place, WEIGHTS)
    for data in suite.data.values():
        place = data_folder(folder, data.repository)
        found[place] = _lack(place, DATA)
    return {place: reason for place, reason in found.items() if reason}


def _lack(place: Path, suffixes: tuple[str, ...]) -> str | None:
    """Return what a repository's folder lacks, if anything: a download that was cut short is no repository."""
    if not place.is_dir():
        return "nothing there"
    if (place / MARK).exists():
        return "a download that has not ended"
    files = [path for path in place.rglob("*") if path.suffix in suffixes and ".cache" not in path.parts]
    if not files:
        return f"no {' or '.join(suffixes)} in it"
    return _absent_parts(files)


def _absent_parts(files: Sequence[Path]) -> str | None:
    """Say which files are too few of those that are numbered as parts of a whole (train-00000-of-00003.parquet)."""
    parts: dict[tuple[Path, str, int], set[str]] = {}
    for path in files:
        if match := _PART.match(path.name):
            start, number, count = match.groups()
            parts.setdefault((path.parent, start, int(count)), set()).add(number)
    for (_, start, count), found in parts.items():
        if len(found) < count:
            return f"{len(found)} of {count} files {start}*"
    return None


def suite_text(suite: PublishedSuite) -> str:
    """Return the suite file as text, with paths from the folder that it lies in."""
    clip = suite.kind == "hf_clip"
    content: dict[str, Any] = {
        "name": suite.name.replace(":", "-"),
        "model": {"kind": suite.kind, "base": f"models/{suite.base}", **suite.options},
        **({"data": {"renamed": True}} if clip else {}),
        "shared_examples": "name",
        "tasks": [_task(suite, task, clip) for task in suite.experts],
    }
    head = f"# {suite.name}, written by mergebound from its table of published suites, and anew where it differs.\n"
    return head + yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def _task(suite: PublishedSuite, task: str, clip: bool) -> dict[str, Any]:
    data = suite.data[task]
    prompt = {name: list(prompts()[task][name]) for name in ("classes", "templates")} if clip else {}
    cuts: dict[str, dict[str, float]] = {data.calibration: {"calibration": SIZES.calibration}}
    if data.validation is None:
        cuts["test"] = {**cuts.get("test", {}), "validation": suite.validation}
    splits = {"train": (data.train, SIZES.train), "test": (data.test, None)}
    if data.validation is not None:
        splits["validation"] = (data.validation, SIZES.validation)
    return {
        "name": task,
        "expert": f"models/{suite.experts[task]}",
        "data": {split: _source(data, name, limit) for split, (name, limit) in splits.items()},
        "splits": cuts,
        **prompt,
    }


def _source(data: DataSet, split: str, limit: int | None) -> Mapping[str, Any]:
    config = {"config": data.config} if data.config else {}
    rows = {"limit": limit} if limit else {}
    return {"dataset": f"datasets/{data.repository}", **config, "split": split, **data.columns, **rows}


class _Plain(yaml.SafeDumper):
    """Writes every value out: a suite file has no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is shared."""
        return True
