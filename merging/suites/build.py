"""The command that makes a shipped suite again: ``python -m merging.suites.build NAME``.

A suite that can be built is a folder of this one with a file ``build.py``: a data class ``Settings`` and a function
``build(settings)``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bounds.types import meant, refuse
from merging.commands import options, run

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the suites that can be built."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/build.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a build; return its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    return run(lambda: _build(name, rest))


def _build(name: str, arguments: Sequence[str]) -> None:
    if name in ("-h", "--help"):
        print(f"usage: python -m merging.suites.build {{{','.join(names())}}} [--help] [options]")
        return
    if name not in names():
        refuse(
            "suite",
            expected=" or ".join(names()),
            got=repr(name),
            cure=meant(name, names(), "name one that can be built"),
        )
    module = import_module(f"merging.suites.{name}.build")
    module.build(options(module.Settings, arguments, f"python -m merging.suites.build {name}"))


if __name__ == "__main__":
    sys.exit(main())
