"""Libraries that only some kinds of models need: imported when they are used, refused in one line when missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from bounds.autodiff import without_jit_warning
from bounds.types import refuse


@contextmanager
def without_log(text: str) -> Iterator[None]:
    """Leave out log lines of a library that hold a text: what they say is not so here."""

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def library(name: str) -> Any:
    """Import an optional library.

    Raises:
        InputError: it is not installed.
    """
    try:
        with without_jit_warning():
            return import_module(name)
    except ImportError as error:
        refuse(f"library {name}", expected="to be installed", got=error, cure="pip install 'mergebound[hub]'")
