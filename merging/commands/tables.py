"""Tables on any width: column names stay whole, cells fold, and what does not fit goes into a table below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WORD = 24
"""Longest word of a cell that is kept whole."""
_FRAME = 3
"""What a column costs beside its content: a line and a space on both sides."""


class TableConsole(Console):
    """A console that prints every table in as many parts as its width asks for."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as any console does, but no table wider than the console."""
        shown = (part for one in objects for part in (fitted(one, self) if isinstance(one, Table) else [one]))
        super().print(*shown, **options)


@dataclass(frozen=True)
class _Column:
    """A column's place in its table, the width at which nothing in it breaks, and the least one it may have."""

    place: int
    natural: int
    least: int


def fitted(table: Table, console: Console) -> list[Table]:
    """Return a table as one or more that fit the console, one below the other.

    Column names are never cut and break only where they have line breaks of their own; words of up to 24 characters
    stay whole, and longer cells fold. Every part begins with the column that names its rows: the first that is not
    justified to the right.
    """
    columns = [_measured(table, place, console) for place in range(len(table.columns))]
    if not columns:
        return [table]
    head = next((c.place for c in columns if table.columns[c.place].justify != "right"), 0) + 1
    parts = _parts(columns, head, console.width)
    return [_part(table, part, console.width, index, len(parts)) for index, part in enumerate(parts)]


def _measured(table: Table, place: int, console: Console) -> _Column:
    column = table.columns[place]
    cap = max(1, (console.width - 1) // 2 - _FRAME)  # two columns of the longest names still stand side by side

    def measure(content: RenderableType) -> Measurement:
        return Measurement.get(console, console.options.update(width=10_000), content)

    name, cells = measure(column.header), [measure(cell) for cell in column.cells] or [Measurement(0, 0)]
    word = min(max(cell.minimum for cell in cells), _WORD)
    natural = max(name.maximum, *(cell.maximum for cell in cells))
    return _Column(place, natural, min(max(name.maximum, word), cap))


def _parts(columns: Sequence[_Column], head: int, width: int) -> list[list[_Column]]:
    """Deal the columns out, in order, to tables that begin with the first ``head`` and are no wider than ``width``."""
    parts: list[list[_Column]] = [list(columns[:head])]
    for column in columns[head:]:
        if len(parts[-1]) > head and _width([*parts[-1], column]) > width:
            parts.append(list(columns[:head]))
        parts[-1].append(column)
    return parts


def _width(columns: Sequence[_Column]) -> int:
    return 1 + sum(_FRAME + column.least for column in columns)


def _part(table: Table, columns: Sequence[_Column], width: int, index: int, count: int) -> Table:
    title = table.title if index == 0 else Text("continued", "table.title")
    part = Table(title=title, caption=table.caption if index == count - 1 else None, show_lines=table.show_lines)
    for column, size in zip(columns, _sizes(columns, width), strict=True):
        own = table.columns[column.place]
        part.add_column(own.header, justify=own.justify, style=own.style, width=size, overflow="fold")
    rows = zip(*(table.columns[column.place].cells for column in columns), strict=True)
    for row, cells in zip(table.rows, rows, strict=True):
        part.add_row(*cells, style=row.style, end_section=row.end_section)
    return part


def _sizes(columns: Sequence[_Column], width: int) -> list[int]:
    """Return the columns' widths: the natural ones, the widest taken back as far as the console asks for."""
    sizes, room = [column.natural for column in columns], width - 1 - _FRAME * len(columns)
    while sum(sizes) > room:
        above = [i for i, column in enumerate(columns) if sizes[i] > column.least]
        if not above:
            break
        sizes[max(above, key=sizes.__getitem__)] -= 1
    return sizes
