"""How a network is read, run and written, one file per kind.

A file of this package with ``Options`` and ``open_base`` is a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from bounds.types import refuse
from merging.models.base import Expert, Export, Network, TaskHead, chosen


@dataclass(frozen=True)
class Kind:
    """A kind of model: the data class of its options, and how a base is opened with them."""

    options: type
    open: Callable[[str | Path, Any], Network]


_MODULES = {found.name: import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)}
KINDS: Mapping[str, Kind] = {
    name: Kind(module.Options, module.open_base) for name, module in _MODULES.items() if hasattr(module, "open_base")
}


def open_network(kind: str, base: str | Path, options: Mapping[str, Any] | None = None) -> Network:
    """Open a base model.

    Args:
        kind: a name of ``KINDS``.
        base: file, folder or name of an architecture, as the kind says.
        options: of the kind, by name.

    Raises:
        InputError: an unknown kind or option, or a base that is not of this kind.
    """
    if kind not in KINDS:
        refuse("model kind", expected=" or ".join(KINDS), got=repr(kind), cure="choose one")
    network = KINDS[kind].open(base, chosen(KINDS[kind].options, options or {}))
    network.source = str(base)
    return network


__all__ = ["KINDS", "Expert", "Export", "Kind", "Network", "TaskHead", "open_network"]
