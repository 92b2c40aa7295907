"""``python -m merging list``: the table of methods, and that of what may follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields

from rich.table import Table

from merging.commands.options import options
from merging.commands.terminal import console, run
from merging.methods import METHODS, POST_PROCESSINGS
from merging.rows import Method, PostProcessing


@dataclass(frozen=True)
class Command:
    """Print the tables of merging methods and of post-processings: paper, settings with defaults, data needs, cost."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    options(Command, arguments, "mergebound list")
    output = console()
    output.print(table(f"{len(METHODS)} merging methods", METHODS))
    output.print(table(f"{len(POST_PROCESSINGS)} post-processings, after any of them: tsv_m+svc", POST_PROCESSINGS))


def table(title: str, rows: Mapping[str, Method] | Mapping[str, PostProcessing]) -> Table:
    """Return a table, one method a row."""
    result = Table(title=title, show_lines=True)
    for column in ("method", "paper", "settings", "needs", "cost"):
        result.add_column(column, overflow="fold")
    for name, row in rows.items():
        result.add_row(name, row.paper, settings_text(row.settings), row.needs_text, row.cost)
    return result


def settings_text(settings: type) -> str:
    """Return settings and defaults as ``name=value``, one a line."""
    values = {f.name: f.default if f.default is not MISSING else "(required)" for f in fields(settings)}
    return "\n".join(f"{name}={value}" for name, value in values.items()) or "none"
