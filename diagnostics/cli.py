"""The console script ``mergebound``: the same commands as the ``python -m`` forms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

_MODULES: Mapping[str, tuple[str, str]] = {
    "merge": ("merging.commands.merge", "merge the experts of a suite (python -m merging)"),
    "suite": (
        "merging.commands.suite",
        "write or probe a suite file of your own experts, fetch a published one (suite init, check, fetch)",
    ),
    "convert": (
        "merging.commands.convert",
        "turn a pickled or sharded checkpoint into safetensors, running nothing of it",
    ),
    "report": (
        "diagnostics.bound_report",
        "report the bound of merges (python -m diagnostics.bound_report); report show FILE prints a report.json",
    ),
    "export": ("diagnostics.export", "write a merge as a folder that the model's own library loads, with a model card"),
    "reproduce": (
        "merging.commands.reproduce",
        "published suites beside the published numbers (suite fetch gets them first)",
    ),
    "sweep": ("diagnostics.sweep", "sweep the distance from the pretrained weights (python -m diagnostics.sweep)"),
    "ablation": (
        "diagnostics.ablation",
        "what each part of SAMerging is worth, over seeds (python -m diagnostics.ablation)",
    ),
}


def _command(module: str) -> Callable[[Sequence[str]], int]:
    """Return a command whose module is imported when it is called: no command waits for the others' libraries."""
    return lambda arguments: import_module(module).main(arguments)


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    name: (_command(module), text) for name, (module, text) in _MODULES.items()
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch ``mergebound COMMAND ...``; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]][0](arguments[1:])
    usage = "usage: mergebound COMMAND [--help]\n" + "\n".join(
        f"  {name:9} {text}" for name, (_, text) in COMMANDS.items()
    )
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    got = repr(arguments[0]) if arguments else "nothing"
    print(f"error: command: expected {' or '.join(COMMANDS)}; got {got}; see mergebound --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
