"""Suites: experts with their tasks, by a name of this folder, a suite file, a built folder, or a function of one's own.

A file or package of this folder with a function ``suite`` is a suite, by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from bounds.types import meant, refuse
from merging.named import is_named
from merging.suites import from_file, from_folder, from_function, published
from merging.suites.base import Suite, all_hashed
from merging.suites.content import alike
from merging.suites.from_modules import suite_from_modules
from merging.task_vectors import Storage

_COMMAND = "build"
_FILES = (found.name for found in iter_modules(__path__) if "_" not in found.name)  # with one: parts of a suite
SUITES: Mapping[str, Callable[[Storage], Suite]] = {
    name: module.suite
    for name in _FILES
    if name != _COMMAND and hasattr(module := import_module(f"{__name__}.{name}"), "suite")
}


def load(name: str | Path, storage: Storage | None = None) -> Suite:
    """Load a suite; ``storage`` is the precision and place of its task vectors.

    Args:
        name: a name of SUITES or of a published suite (clip-ta8, clip-ta8:ViT-L-14, after ``mergebound suite fetch``),
            the path of a suite file (.yaml, .yml; docs/own_experts.md) or of a folder that
            ``python -m merging.suites.build`` made, or ``package.module:function``, a function that returns a
            :class:`Suite` and takes the storage or nothing.
        storage: by default float32 or wider, in memory; of a suite file's experts nothing is kept in memory.

    Raises:
        InputError: no such suite, file or function; a suite whose files are missing, damaged or do not fit.
    """
    text, storage = str(name), storage or Storage()
    if text in SUITES:
        return SUITES[text](storage).found_by(text)
    if published.is_published(text):
        return published.load(text, storage).found_by(text)
    if from_file.is_suite_file(text):
        return from_file.load(Path(text), storage).found_by(str(Path(text).resolve()))
    if from_folder.is_suite_folder(text):
        return from_folder.load(Path(text), storage, SUITES).found_by(str(Path(text).resolve()))
    if is_named(text):
        return from_function.load(text, storage).found_by(text)
    cure = "choose a name, write a file with mergebound suite init, or name a function of yours"
    names = (*SUITES, *published.NAMES)
    expected = f"{' or '.join(names)}, a file .yaml, a built folder, or package.module:function"
    return refuse("suite", expected=expected, got=repr(text), cure=meant(text, names, cure))


def made_of_files(origin: str) -> bool:
    """Whether a suite found by ``origin`` is made of nothing but the files whose sha256 it lists, as far as it is."""
    return not is_named(origin)


__all__ = ["SUITES", "Suite", "alike", "all_hashed", "load", "made_of_files", "suite_from_modules"]
