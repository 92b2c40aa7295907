"""``mergebound suite fetch NAME``: what a published suite would download, and the download, which can be resumed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from bounds.types import refuse
from merging.commands.options import options
from merging.commands.terminal import console, plain, track
from merging.files import check_folder, encoded, write
from merging.suites import published
from merging.suites.published import MARK, DataSet, PublishedSuite

NETWORK = "connect to it, or copy the folder from a machine that has it and name it with MERGEBOUND_HUB"
SECONDS = 10.0
"""How long the hub may take to answer."""
OWN_CARD = "Written by mergebound: which file is of which split."
_MODEL_FILES = re.compile(r"[^/]*\.(json|txt|model|jinja)")


@dataclass(frozen=True, kw_only=True)
class Command:
    """List what a published suite would download from the hub, and how much; download it with --yes.

    Repositories that are there already are not asked for; a download that was cut short goes on where it stopped.
    FOLDER/models/ORG/NAME and FOLDER/datasets/ORG/NAME have the hub's own layout: a folder that was copied there by
    hand is as good as a fetched one.
    """

    name: Annotated[str, tyro.conf.Positional]
    """clip-ta8, clip-tall14, clip-tall20 or gpt2-glue7."""
    model: str | None = None
    """The base model: ViT-B-32 (default), ViT-B-16 or ViT-L-14; also written clip-ta8:ViT-L-14."""
    to: Path | None = None
    """The folder; by default what MERGEBOUND_HUB names, else a folder of the user's cache."""
    yes: bool = False
    """Download; without it, only list."""


@dataclass(frozen=True)
class Repository:
    """A repository of a suite; of a data set, with the configurations that are read."""

    kind: Literal["model", "dataset"]
    name: str
    folder: Path
    parts: tuple[DataSet, ...] = ()


@dataclass(frozen=True)
class Listed:
    """What is wanted of a repository: its revision, file -> bytes, and the bytes that are there already."""

    repository: Repository
    revision: str
    files: Mapping[str, int]
    there: int

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def fetch(arguments: Sequence[str]) -> None:
    """List, and with --yes download.

    Raises:
        InputError: an unknown suite, no network, files that are not as the table of suites says, no room.
    """
    command = options(Command, arguments, "mergebound suite fetch")
    suite = published.find(command.name if command.model is None else f"{command.name}:{command.model}")
    folder = command.to or published.hub_folder()
    wanted = [found for found in repositories(suite, folder) if found.folder in published.missing(suite, folder)]
    output = console()
    if wanted:
        check_folder(folder, "--to", parents=True)
        api = hub()
        listed = [listing(found, api) for found in track(wanted, f"asking the hub about {suite.name}")]
        output.print(table(listed, suite))
        _check_room(listed, folder)
        if not command.yes:
            output.print(plain(f"nothing was downloaded; add --yes to do it, into {folder}"), soft_wrap=True)
            return
        for index, found in enumerate(listed):
            output.print(plain(f"{index + 1} of {len(listed)}: {found.repository.name}, {_size(found.bytes)}"))
            download(found)
    path = published.write_suite(suite, folder)
    named = "" if folder == published.hub_folder() else f"with MERGEBOUND_HUB={folder} "
    output.print(plain(f"{suite.name} is there, described in {path}: {named}use --suite {suite.name}"), soft_wrap=True)


def repositories(suite: PublishedSuite, folder: Path) -> list[Repository]:
    """Return base, experts and data sets, each repository once."""
    models = dict.fromkeys((suite.base, *suite.experts.values()))
    found = [Repository("model", name, published.model_folder(folder, name)) for name in models]
    for name in dict.fromkeys(data.repository for data in suite.data.values()):
        parts = tuple(data for data in suite.data.values() if data.repository == name)
        found.append(Repository("dataset", name, published.data_folder(folder, name), parts))
    return found


def hub() -> Any:
    """Return the hub's client.

    Raises:
        InputError: its package is not installed, or told to stay offline.
    """
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        cure = "pip install 'mergebound[hub]'"
        refuse("suite fetch", expected="the package huggingface_hub", got="not installed", cure=cure)
    if constants.HF_HUB_OFFLINE:
        refuse("suite fetch", expected="a network", got="HF_HUB_OFFLINE=1", cure=f"unset it, or {NETWORK}")
    return HfApi()


def listing(repository: Repository, api: Any) -> Listed:
    """Ask the hub for a repository's files and choose those that are read.

    Raises:
        InputError: no answer, no such repository, or none of its files is what the table says.
    """
    ask = api.model_info if repository.kind == "model" else api.dataset_info
    try:
        info = ask(repository.name, files_metadata=True, timeout=SECONDS)
    except Exception as error:  # whatever the hub's client and its network libraries raise
        refuse(f"{repository.kind} {repository.name}", expected="an answer of the hub", got=_line(error), cure=NETWORK)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    files = {name: sizes[name] for name in chosen(repository, list(sizes))}
    there = sum(size for name, size in files.items() if _has(repository.folder / name, size))
    return Listed(repository, str(info.sha), files, there)


def chosen(repository: Repository, names: Sequence[str]) -> list[str]:
    """Return the files of a repository that are read.

    Of a model: configuration, tokenizer and one form of its weights; of a data set: the files of its splits.

    Raises:
        InputError: no weights, or a split without files.
    """
    if repository.kind == "dataset":
        parts = [split_files(data, split, names) for data in repository.parts for split in data.splits]
        return sorted({name for part in parts for name in part})
    top = [name for name in names if "/" not in name]
    for suffix, start in ((".safetensors", "model"), (".bin", "pytorch_model")):
        weights = [name for name in top if name.startswith(start) and name.endswith((suffix, f"{suffix}.index.json"))]
        if any(name.endswith(suffix) for name in weights):
            indices = (".safetensors.index.json", ".bin.index.json")
            plain_files = [name for name in top if _MODEL_FILES.fullmatch(name) and not name.endswith(indices)]
            return sorted({*weights, *plain_files})
    return _unlike(repository.name, "model.safetensors or pytorch_model.bin", top)


def split_files(data: DataSet, split: str, names: Sequence[str]) -> list[str]:
    """Return the files of a split: in the configuration's folder, where there is one, and named after the split.

    Raises:
        InputError: there are none.
    """
    readable = [name for name in names if name.endswith(published.DATA)]
    inside = [name for name in readable if data.config and f"{data.config}/" in name]
    pattern = re.compile(rf"(.*[/_.-])?{re.escape(split)}[/.-].*")
    found = [name for name in inside or readable if pattern.fullmatch(name)]
    return found or _unlike(data.repository, f"files of split {split!r}", names)


def download(listed: Listed) -> None:
    """Download a repository's files; what is there already is not read again.

    Raises:
        InputError: the network failed on the way.
    """
    import huggingface_hub

    repository = listed.repository
    mark = repository.folder / MARK
    repository.folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        huggingface_hub.snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=listed.revision,
            local_dir=repository.folder,
            allow_patterns=[re.sub(r"([\[\]*?])", "[\\1]", name) for name in listed.files],
            max_workers=4,
        )
    except Exception as error:  # whatever the hub's client and its network libraries raise
        cure = "run the same command again: it goes on where it stopped"
        refuse(f"download of {repository.name}", expected="a network and a disk", got=_line(error), cure=cure)
    lost = [name for name in listed.files if not (repository.folder / name).is_file()]
    if lost:
        _unlike(repository.name, f"all {len(listed.files)} files after the download", [f"all but {lost[0]}"])
    if repository.kind == "dataset":
        _write_card(listed)
    mark.unlink()


def _write_card(listed: Listed) -> None:
    """Write the card that tells the library datasets which files are of which split; a card of the hub stays."""
    path = listed.repository.folder / "README.md"
    if path.is_file() and OWN_CARD not in path.read_text(encoding="utf-8", errors="replace"):
        return
    lines = ["---", "configs:"]
    for data in listed.repository.parts:
        lines += [f"- config_name: {data.config or 'default'}", "  data_files:"]
        for split in data.splits:
            lines += [f"  - split: {split}", "    path:"]
            lines += [f"    - {name!r}" for name in sorted(split_files(data, split, list(listed.files)))]
    text = "\n".join([*lines, "---", "", OWN_CARD, f"Revision {listed.revision} of {listed.repository.name}.", ""])
    write(path, lambda file: file.write(encoded(text)))


def table(listed: Sequence[Listed], suite: PublishedSuite) -> Table:
    """Return what would be downloaded, a repository a row, with the sum."""
    result = Table(title=plain(f"{suite.name}: to be downloaded", "table.title"))
    for column in ("repository", "kind", "files", "size", "there already"):
        result.add_column(column, justify="left" if column in ("repository", "kind") else "right")
    for found in listed:
        kind = "data" if found.repository.kind == "dataset" else "model"
        result.add_row(
            plain(found.repository.name), kind, str(len(found.files)), _size(found.bytes), _size(found.there)
        )
    result.add_section()
    files, size, there = (
        sum(values) for values in zip(*((len(f.files), f.bytes, f.there) for f in listed), strict=True)
    )
    result.add_row("sum", "", str(files), _size(size), _size(there))
    return result


def _check_room(listed: Sequence[Listed], folder: Path) -> None:
    """Say what is free on the disk, and refuse to begin what does not fit.

    Raises:
        InputError: not enough room.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free, need = shutil.disk_usage(place).free, sum(found.bytes - found.there for found in listed)
    console().print(plain(f"{_size(need)} to download; {_size(free)} free in {place}"), soft_wrap=True)
    if need > free:
        cure = "free some, or choose another folder with --to"
        refuse(f"--to {folder}", expected=f"room for {_size(need)}", got=f"{_size(free)} free", cure=cure)


def _has(path: Path, size: int) -> bool:
    return path.is_file() and os.path.getsize(path) == size


def _unlike(name: str, expected: str, got: Sequence[str]) -> list[str]:
    shown = ", ".join(list(got)[:4]) + (", …" if len(got) > 4 else "")
    cure = "it is not what the table of suites expects: write a suite file of your own for it"
    return refuse(f"repository {name}", expected=expected, got=shown or "no files", cure=cure)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
