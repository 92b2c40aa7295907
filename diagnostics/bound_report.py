"""``python -m diagnostics.bound_report --merged out.pt``: what theory says about a merge, and how far it is off."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bounds.types import refuse
from diagnostics.figures import write_figures
from diagnostics.report import build
from diagnostics.serialise import write_json
from diagnostics.settings import Settings
from diagnostics.text import print_report
from merging import suites
from merging.artifact import load
from merging.commands import console, run, track


@dataclass(frozen=True)
class Command:
    """Report the bound of a merge: terminal tables, report.json and figures."""

    merged: Path
    """The artifact made by python -m merging."""
    out: Path = Path("report")
    """Folder for report.json and the figures."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    command = tyro.cli(Command, args=arguments, prog="python -m diagnostics.bound_report")
    return run(lambda: report(command))


def report(command: Command) -> None:
    """Load, measure, write and print."""
    artifact = load(command.merged)
    _check_folder(command.out)
    if not artifact.suite:
        refuse(
            f"artifact {command.merged}",
            expected="the name of a suite",
            got="none",
            cure="call diagnostics.report.build with your own Suite",
        )
    result = build(suites.load(artifact.suite), artifact, command.settings, track)
    command.out.mkdir(exist_ok=True)
    write_json(result, command.out / "report.json")
    paths = write_figures(result, command.out)
    output = console()
    print_report(result, output)
    output.print()
    output.print(
        f"{command.out / 'report.json'} and {len(paths)} figures, {sum(result.seconds.values()):.0f} s",
        highlight=False,
    )


def _check_folder(folder: Path) -> None:
    parent = folder if folder.exists() else folder.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        refuse(
            f"report folder {folder}",
            expected="a folder that can be made and written",
            got=f"{parent}",
            cure="choose another --out",
        )


if __name__ == "__main__":
    sys.exit(main())
