"""A suite from a file: base, experts and data, read in their own formats (docs/own_experts.md)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import InputError, Inputs, Params, Sample, refuse, take
from merging.checkpoints import sha256, weight_files
from merging.data import Examples, Source, groups, prepared, shares
from merging.data import read as read_data
from merging.models import Expert, Network, open_network
from merging.named import is_named
from merging.params import finite
from merging.suites.base import Suite
from merging.suites.suite_file import Read, TaskSection
from merging.suites.suite_file import read as read_file
from merging.suites.yaml_lines import Place
from merging.task import SPLITS, Task
from merging.task_vectors import Storage, TaskVectors

CACHE_VARIABLE = "MERGEBOUND_CACHE"
TEMPLATES = ("a photo of a {}.",)
"""Prompts of a zero-shot head where the file gives none."""
READ = (".json", ".txt", ".model", ".jinja")
"""Suffixes of what is read of a model's folder besides its weights."""


def is_suite_file(text: str) -> bool:
    """Whether a text is the name of a suite file."""
    return text.endswith((".yaml", ".yml"))


def load(path: Path, storage: Storage) -> Suite:
    """Read a suite file and all that it names; experts in mapped files stay there until they are used.

    Raises:
        InputError: see :func:`merging.suites.suite_file.read`; files that are missing, damaged or do not fit together.
    """
    read = read_file(path)
    network = base_of(read)
    sources = {"suite file": sha256(path)}
    experts: dict[str, Params] = {}
    tasks, heads, notes, learned = [], {}, {"base": "; ".join(network.notes)}, set[str]()
    for index, section in enumerate(read.file.tasks):
        with told(read, ("tasks", index)):
            expert = _expert(network, read.path(section.expert))
            data = task_data(read, index, network, expert)
            sources |= data.sources
            templates = section.templates or read.file.templates or TEMPLATES
            head = network.head(expert, data.class_names, templates)
            given: dict[str, Any] = {split: data.samples.get(split) for split in SPLITS}
            tasks.append(Task(section.name, network.classifier(head), head.class_names, **given))
            learned |= {section.name} if expert.head else set()
            experts[section.name], heads[section.name] = expert.parameters, head
            notes[f"task {section.name}"] = "; ".join((*expert.notes, *data.notes))
    models = {"base": read.model.base, **{f"{section.name}/expert": section.expert for section in read.file.tasks}}
    sources |= {**hashed(read, models), **_code(read)}
    return Suite(
        read.file.name or path.stem,
        _vectors(network, experts, storage, sources),
        tasks,
        sources=sources,
        shared_examples=read.file.shared_examples,
        network=network,
        heads=heads,
        learned_heads=frozenset(learned),
        notes={name: note for name, note in notes.items() if note},
    )


def _expert(network: Network, path: Path) -> Expert:
    """Read an expert; its head is looked at here, its weights where they are used.

    Raises:
        InputError: see :meth:`merging.models.Network.expert`; a head with numbers that are not finite.
    """
    expert = network.expert(path)
    for name, value in expert.head.items():
        if not finite(value):
            refuse(f"expert {path}, {name}", expected="finite numbers", got="nan or inf", cure="check the checkpoint")
    return expert


def base_of(read: Read) -> Network:
    """Open the base model of a suite file.

    Raises:
        InputError: an unknown kind, options that it does not have, weights that are missing or do not fit.
    """
    with told(read, ("model",)):
        network = open_network(read.model.kind, _place(read, read.model.base), read.model.options)
    network.source = read.model.base
    return network


def _place(read: Read, text: str) -> Path | str:
    """Return a path of the suite file; the text itself where nothing is there: it may name an architecture."""
    path = read.path(text)
    return path if path.exists() else text


@contextmanager
def told(read: Read, place: Place) -> Iterator[None]:
    """Name a line of the suite file in what is refused inside the block, unless it names one itself."""
    try:
        yield
    except InputError as error:
        named = str(error).startswith(str(read.document.path))
        raise error if named else InputError(f"{read.document.where(place)}: {error}") from None


def hashed(read: Read, models: Mapping[str, str]) -> dict[str, str]:
    """Return ROLE/FILE -> sha256 of all that is read of models (role -> path); where they lie does not matter.

    All cores hash: it is most of the time that a suite of large models takes to load.
    """
    paths = {role: path for role, text in models.items() if (path := read.path(text)).exists()}
    files = {f"{role}/{file.name}": file for role, path in paths.items() for file in _files(path)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(files, pool.map(sha256, files.values()), strict=True))


def _code(read: Read) -> dict[str, str]:
    """Name functions of the user's that make the network: they have no sha256, so the suite is known by its content."""
    found = (value for value in read.model.options.values() if isinstance(value, str) and is_named(value))
    return {f"base/{value}": "code" for value in found if read.model.kind == "torch"}


def _files(path: Path) -> list[Path]:
    """Return the files that are read of a model: its weights, and what else of its folder says how to read them."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.suffix in READ)
    return list(dict.fromkeys([*weight_files(path), *files]))


def _vectors(
    network: Network, experts: Mapping[str, Params], storage: Storage, sources: Mapping[str, str]
) -> TaskVectors:
    if storage == Storage():
        return TaskVectors.on_demand(network.parameters, experts)
    return TaskVectors.from_experts(network.parameters, experts, storage, sources)


@dataclass(frozen=True)
class TaskData:
    """A task's splits as the network reads them, its class names, file -> sha256 of its data, what to know of them."""

    samples: Mapping[str, Sample]
    class_names: Sequence[str]
    sources: Mapping[str, str]
    notes: Sequence[str]


def task_data(read: Read, index: int, network: Network, expert: Expert) -> TaskData:
    """Read a task's data.

    Raises:
        InputError: no shares for one data set, classes of which neither file, expert nor data know the names.
    """
    section, samples, found, notes = read.file.tasks[index], {}, {}, []
    names: Sequence[str] | None = section.classes or expert.class_names
    for split, source in read.sources(index).items():
        examples = read_data(_with_classes(source, expert), read.folder)
        found[f"{section.name}/data/{split or 'all'}/{_named(source)}"] = examples.digest()
        names = names or examples.class_names
        notes += examples.notes
        for name, sample in _cut(read, section, split, examples, network).items():
            if name in samples:
                cure = "name it in data or in splits, not in both"
                refuse(f"split {name}", expected="examples from one place", got="from two", cure=cure)
            samples[name] = sample
    if names is None:
        cure = "write classes: [name, …] in the order of the labels"
        refuse("classes", expected="names of the classes", got="none from file, expert or data", cure=cure)
    return TaskData(samples, list(names), found, notes)


def _named(source: Source) -> str:
    """Name a data set among the sources: splits of a data set are files of their own."""
    parts = [part for part in (source.config, source.split) if part] if source.dataset else []
    return " ".join([Path(source.path).name if source.path else str(source.dataset), *parts])


def _with_classes(source: Source, expert: Expert) -> Source:
    """Let the expert's own class names say in which order labels that are names are counted."""
    known = source.classes or not expert.class_names
    return source if known else replace(source, classes=tuple(expert.class_names or ()))


def _cut(read: Read, section: TaskSection, split: str, examples: Examples, network: Network) -> dict[str, Sample]:
    """Return split -> sample out of one data set; examples that the network reads alike come into one split."""
    wanted = section.splits or read.file.splits or {}
    if split:
        wanted = wanted.get(split) or {}
        if not isinstance(wanted, Mapping):
            refuse(f"splits of {split}", expected="{split: share or count}", got=wanted, cure="as {calibration: 64}")
    elif not wanted:
        cure = "write splits: {train: 0.5, calibration: 0.1, validation: 0.1, test: 0.3}, or a data set for each split"
        refuse("splits", expected="shares of one data set", got="none", cure=cure)
    key, folder = f"{examples.key()} {network.preparation}", cache_folder(read)
    whole = prepared(examples.inputs, network.prepare, key, folder, f"data of task {section.name!r}")
    if not wanted:
        return {split: _sample(split, whole, examples.labels)}
    parts = shares(len(examples), dict(wanted), read.file.seed, examples.labels, groups=groups(whole))
    if split:
        left = torch.ones(len(examples), dtype=torch.bool)
        left[torch.cat(list(parts.values()))] = False
        parts[split] = left.nonzero().flatten()
    return {
        name: _sample(name, _rows(whole, rows, key, folder), None if examples.labels is None else examples.labels[rows])
        for name, rows in parts.items()
    }


def _rows(whole: Inputs, rows: Tensor, key: str, folder: Path | None) -> Inputs:
    """Return some rows of prepared inputs: in memory, or as a file of their own that is mapped like the whole."""
    if folder is None:
        return take(whole, rows)
    key = f"{key} {hashlib.sha256(rows.numpy().tobytes()).hexdigest()}"
    return prepared(rows.tolist(), lambda some: take(whole, torch.tensor(list(some))), key, folder, "split")


def _sample(split: str, inputs: Inputs, labels: Tensor | None) -> Sample:
    return Sample(inputs, None if split == "calibration" else labels)


def cache_folder(read: Read) -> Path | None:
    """Return where prepared data are kept: as the file says, else as the environment does, else the user's cache."""
    if read.file.cache == "none":
        return None
    if read.file.cache:
        return read.path(read.file.cache)
    given: Any = os.environ.get(CACHE_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given) if given else Path(home) / "mergebound"
