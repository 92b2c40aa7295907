"""What a text ``package.module:name`` names: functions of the user's."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from bounds.types import refuse

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_named(text: str) -> bool:
    """Whether a text has the form package.module:name."""
    return _NAME.fullmatch(text) is not None


def find(text: str, what: str) -> Any:
    """Return the function that ``package.module:name`` names; modules of the working folder are found, too.

    Raises:
        InputError: no such module or function, or a module that cannot be imported.
    """
    module, _, name = text.partition(":")
    cure = "run the command where the module can be imported, and check its spelling"
    if not is_named(text):
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
