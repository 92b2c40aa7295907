"""What a kept result belongs to: the suite, by its files or its content, and the code behind it, by its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from bounds.types import Params, Sample
from diagnostics.work.cache import digest, digest_params
from merging.suites import Suite
from merging.task import Task, score

PROJECT = ("bounds", "merging", "diagnostics")
"""The packages whose code makes numbers."""
FEW = 2
"""Test examples of each task that are scored to tell one forward function from another: code has no hash."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)


def all_hashed(sources: Mapping[str, str]) -> bool:
    """Whether every source is given by a sha256, and there is one."""
    return bool(sources) and all(_SHA256.fullmatch(value) for value in sources.values())


def suite_content(suite: Suite) -> str:
    """Return the hash of a suite in memory: weights, names, every example, and what θ_0 scores on a few of them."""
    vectors = suite.task_vectors
    tasks = [
        (
            task.name,
            list(task.class_names),
            *((split, _sample(getattr(task, split))) for split in task.splits),
            _scores(task, suite),
        )
        for task in suite.tasks
    ]
    deltas = [digest_params(delta) for delta in vectors.deltas]
    return digest(suite.name, list(vectors.names), digest_params(vectors.base), deltas, tasks)


def _sample(sample: Sample) -> str:
    inputs: Params = {"inputs": sample.inputs} if isinstance(sample.inputs, torch.Tensor) else dict(sample.inputs)
    return digest_params(inputs if sample.labels is None else {**inputs, " labels": sample.labels})


def _scores(task: Task, suite: Suite) -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits of a product depend on the number of threads, what a suite is does not
    try:
        scores = score(task.forward, suite.task_vectors.base, task.test.take(slice(FEW)).inputs)
    finally:
        torch.set_num_threads(threads)
    return digest_params({"scores": scores})


def code_of(function: Callable[..., Any]) -> str:
    """Return the hash of the source behind a function: its module and all of the project that this imports.

    Imports are read from the text, at whatever level they stand. Packages count when they are imported themselves, not
    because a module lies in them.
    """
    while isinstance(function, partial):
        function = function.func
    module = inspect.unwrap(function).__module__
    return _code(module) if module.split(".")[0] in PROJECT else ""


@cache
def _code(module: str) -> str:
    reached, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += imports(name)
    whole = hashlib.sha256(str(torch.__version__).encode())
    for name in sorted(reached):
        whole.update(f"{name} {hashlib.sha256(_source(name).encode()).hexdigest()}".encode())
    return whole.hexdigest()[:24]


@cache
def imports(module: str) -> tuple[str, ...]:
    """Return the modules of the project that a module's text imports."""
    text = _source(module)
    found = [name.strip().split(" ")[0] for match in _IMPORT.finditer(text) for name in match[1].split(",")]
    for match in _FROM.finditer(text):
        names = [part.split(" as ")[0].strip() for part in re.sub(r"[()]|#[^\n]*", "", match[2]).split(",")]
        inner = [f"{match[1]}.{name}" for name in names if name]
        submodules = [name for name in inner if _path(name) is not None]
        found += submodules if len(submodules) == len(inner) else [match[1], *submodules]
    return tuple(dict.fromkeys(name for name in found if _path(name) is not None))


@cache
def _path(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] not in PROJECT:
        return None
    base = Path(str(importlib.import_module(parts[0]).__file__)).parent.joinpath(*parts[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _source(module: str) -> str:
    path = _path(module)
    return "" if path is None else path.read_text(encoding="utf-8")
