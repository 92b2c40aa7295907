"""The console script ``mergebound``: every command of the toolkit, the same as the ``python -m`` forms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from bounds.types import meant, refuse
from merging.commands import run

_MODULES: Mapping[str, tuple[str, str]] = {
    "merge": ("merging.commands.merge", "merge the experts of a suite"),
    "compare": ("merging.commands.compare", "merge a suite by many methods and rank them"),
    "list": ("merging.commands.listing", "the table of methods: settings, needs and cost"),
    "suite": ("merging.commands.suite", "init, check: a suite file of your own experts; fetch: a published suite"),
    "edit": ("merging.commands.edit", "change a merge: without an expert, scaled, with tensors back at θ_0"),
    "convert": ("merging.commands.convert", "a pickled or sharded checkpoint as safetensors, running nothing of it"),
    "export": ("diagnostics.export", "a merge as a folder that the model's own library loads, with a model card"),
    "report": ("diagnostics.bound_report", "what is certified of merges; report show, report export: its tables"),
    "reproduce": ("merging.commands.reproduce", "a published suite beside the published numbers"),
    "sweep": ("diagnostics.sweep", "the bound against the distance from the pretrained weights"),
    "ablation": ("diagnostics.ablation", "what each part of SAMerging is worth, over seeds"),
    "study": ("diagnostics.study.coverage", "coverage: statements hold, and wrong ones fail, on finite populations"),
    "benchmark": ("diagnostics.benchmark.__main__", "speed and memory, as ratios that do not depend on the machine"),
    "selfcheck": ("diagnostics.selfcheck", "check in seconds that the installation works and its numbers are right"),
}
"""Command -> its module, and what it does in a line."""
_PACKAGE = "mergebound"


def _command(module: str) -> Callable[[Sequence[str]], int]:
    """Return a command whose module is imported when it is called: no command waits for the others' libraries."""
    return lambda arguments: import_module(module).main(arguments)


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    name: (_command(module), text) for name, (module, text) in _MODULES.items()
}


def usage() -> str:
    """Return what ``mergebound`` alone says: every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mergebound COMMAND [options]",
            "       mergebound COMMAND --help",
            "       mergebound --version",
            "",
            *lines,
            "",
            "first steps: mergebound selfcheck; mergebound merge --suite mini8 --out out.pt;",
            "             mergebound report --merged out.pt",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch ``mergebound COMMAND ...``; return the exit status (0 help and version, 2 an unknown command)."""
    first, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if first in COMMANDS:
        return COMMANDS[first][0](rest)
    if first in ("-h", "--help", "help"):
        print(usage())
        return 0
    if first == "--version":
        print(f"{_PACKAGE} {_version()}")
        return 0
    return run(lambda: _refuse(first))


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "(source tree, not installed)"


def _refuse(name: str) -> None:
    cure = meant(name, COMMANDS, "see mergebound --help")
    refuse("command", expected=" or ".join(COMMANDS), got=repr(name), cure=cure)


if __name__ == "__main__":
    sys.exit(main())
