"""A suite made by a function of the user's, named ``package.module:function``."""

from __future__ import annotations

import inspect

from bounds.types import refuse
from merging.named import find
from merging.suites.base import Suite
from merging.task_vectors import Storage


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
