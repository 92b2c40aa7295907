"""What every command of the toolkit shares: one line and status 2 for bad input, progress on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bounds.types import InputError

Item = TypeVar("Item")


def run(command: Callable[[], None]) -> int:
    """Run a command; return its exit status: 0, 2 after bad input (one line on stderr), 130 after an interrupt."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing half-written", file=sys.stderr)
        return 130
    return 0


def console() -> Console:
    """Console for tables: as wide as the terminal, 120 columns where there is none."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=120)


def track(steps: Iterable[Item], description: str) -> Iterable[Item]:
    """Go through ``steps`` with a progress bar and the remaining time on stderr; nothing if that is no terminal."""
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield from progress.track(list(steps), description=description)
