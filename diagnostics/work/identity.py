"""The code behind a kept result, by the hash of its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

PROJECT = ("bounds", "merging", "diagnostics")
"""The packages whose code makes numbers."""
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)


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
