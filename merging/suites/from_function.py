"""A suite made by a function of the user's, named ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.suites.base import Suite
from merging.task_vectors import Storage

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(text: str) -> bool:
    """Whether a text has the form package.module:function."""
    return _NAME.fullmatch(text) is not None


def find(text: str, what: str) -> Any:
    """Return what ``package.module:name`` names; modules of the working folder are found, too.

    Raises:
        InputError: no such module or name, or a module that cannot be imported.
    """
    module, _, name = text.partition(":")
    cure = "run the command where the module can be imported, and check its spelling"
    if not is_function(text):
        refuse(what, expected="package.module:function", got=repr(text), cure=cure)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as python -m does; a console script does not
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        got = " ".join(f"{type(error).__name__}: {error}".split())
        refuse(f"{what} {text}", expected="a module that can be imported", got=got, cure=cure)
    if not callable(getattr(found, name, None)):
        refuse(f"{what} {text}", expected=f"a function {name} in it", got="none", cure=cure)
    return getattr(found, name)


def load(text: str, storage: Storage) -> Suite:
    """Call the function, with the storage where it takes an argument, and return its suite.

    Raises:
        InputError: see :func:`find`; something else than a :class:`Suite`.
    """
    function = find(text, "suite")
    result = function(storage) if inspect.signature(function).parameters else function()
    if not isinstance(result, Suite):
        refuse(f"suite {text}", expected="a merging.suites.Suite", got=f"a {type(result).__name__}", cure="return one")
    return result
