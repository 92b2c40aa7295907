"""The console script ``mergebound``: the same commands as the ``python -m`` forms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from diagnostics import ablation, bound_report, export, sweep
from merging.commands import convert, reproduce, suite
from merging.commands.merge import main as merge

COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "merge": (merge, "merge the experts of a suite (python -m merging)"),
    "suite": (suite.main, "write or probe a suite file of your own experts (suite init, suite check)"),
    "convert": (convert.main, "turn a pickled or sharded checkpoint into safetensors, running nothing of it"),
    "report": (
        bound_report.main,
        "report the bound of merges (python -m diagnostics.bound_report); report show FILE prints a report.json",
    ),
    "reproduce": (reproduce.main, "published suites beside the published numbers (suite fetch gets them first)"),
    "export": (export.main, "write a merge as a folder that the model's own library loads, with a model card"),
    "sweep": (sweep.main, "sweep the distance from the pretrained weights (python -m diagnostics.sweep)"),
    "ablation": (ablation.main, "what each part of SAMerging is worth, over seeds (python -m diagnostics.ablation)"),
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
