"""A comparison as tables: on the terminal, in Markdown, in CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from merging.commands.compare_columns import NEAR, OF_EXAMPLES, OF_TOKENS, WITH_ERROR, Column, Columns
from merging.commands.compare_rows import Row
from merging.commands.ranks import LEVEL, counted
from merging.commands.terminal import plain
from merging.plain import to_plain
from merging.suites import Suite, published

SCHEMA = "mergebound.compare/2"
READING = (
    f"#: rank of the merges by mean. {NEAR}: less than two standard errors, so the test examples do not tell the two "
    "apart. ± after mean, KL and cross-entropy: standard error over seeds. ± after gain and differences: standard "
    "error over test examples, which are paired, and over seeds where there are several. ranks: those that a merge may "
    "have; letters: merges that share one are not told apart. Both look at all pairs of merges together: that any pair "
    f"is told apart wrongly, or any true rank left out, has probability {LEVEL:.0%} at most (Holm)."
)
ONE_SEED = "With one seed the errors of methods that draw are of the test examples alone: --seeds 5 adds the draw's."
FEW_SEEDS = (
    "An error over fewer than five seeds is itself uncertain: where draws vary more than test examples do, two "
    "standard errors hold the truth in 7 (two seeds) or 8 (three) of 10 cases instead of 19 of 20."
)


PUBLISHED: Mapping[str, Column] = {"published gain": Column(lambda row: row.published_gain, ".2f")}


@dataclass(frozen=True)
class Shown:
    """A comparison that is shown: rows, best mean first, the suite, and whose published gains stand beside."""

    rows: Sequence[Row]
    suite: Suite
    published: str = ""

    @property
    def columns(self) -> Columns:
        """What is shown of tasks of this kind."""
        return OF_TOKENS if self.suite.per_position else OF_EXAMPLES

    @property
    def done(self) -> list[Row]:
        """The rows that ran."""
        return [row for row in self.rows if not row.reason]

    @property
    def ranking(self) -> Mapping[str, Column]:
        """Columns of the first table."""
        return {**self.columns.ranking, **(PUBLISHED if self.published else {})}

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, header and lines of each table."""
        names = [task.name for task in self.suite.tasks]
        first = [
            [_rank(r), r.label, _seeds(r), *(c.cell(r) for c in self.ranking.values()), _ranks(r), _letters(r)]
            for r in self.done
        ]
        costs = [[row.label, *(column.cell(row) for column in self.columns.costs.values())] for row in self.done]
        tasks = [[row.label, *self.columns.cells(row)] for row in self.done]
        return [
            (f"merges of {self.suite.name}", ["#", "method", "seeds", *self.ranking, "ranks", "letters"], first),
            (f"distances and costs on {self.suite.name}", ["method", *self.columns.costs], costs),
            (f"{self.columns.by_task} on {self.suite.name}", ["method", *names], tasks),
        ]

    def notes(self) -> list[str]:
        """Return what is to be read with the tables: which rows may be as good as the best, units, what did not run."""
        best = next(row for row in self.rows if row.is_best)
        near = ", ".join(row.label for row in self.rows if row.is_near_best) or "none"
        lines = [f"Not told apart from the best merge, {best.label}: {near}."]
        lines += [counted({row.label: row.standing for row in self.rows if row.standing}), READING]
        lines.append(f"{self.columns.units}.")
        seeds = max(len(row.seeds) for row in self.done)
        lines += [ONE_SEED] * (seeds == 1) + [FEW_SEEDS] * (1 < seeds < 5)
        if self.published:
            lines.append(f"{PUBLISHED_NOTE.format(self.published)}; {published.FAMILY}.")
        return [*lines, *(f"{row.label} did not run: {row.reason}" for row in self.rows if row.reason)]

    def json(self) -> str:
        """Return everything as JSON: accuracies in 0..1, a number that is not finite as null."""
        names = [task.name for task in self.suite.tasks]
        content = {"schema": SCHEMA, "suite": self.suite.name, "sources": dict(self.suite.sources), "tasks": names}
        content |= {"reading": READING, "units": self.columns.units, "rows": [to_plain(row) for row in self.rows]}
        return json.dumps(content, ensure_ascii=False, indent=1, default=str)

    def csv(self) -> str:
        """Return one line per row, every number in a cell of its own, with the header of :meth:`_line`'s names."""
        text, lines = io.StringIO(), [self._line(row) for row in self.rows]
        header = [name for name, _ in lines[0]]
        csv.writer(text).writerows([header, *([cell for _, cell in line] for line in lines)])
        return text.getvalue()

    def _line(self, row: Row) -> list[tuple[str, str]]:
        """Return the name of each cell of a row, and what it holds; a task may have the name of a figure."""
        line = [("method", row.label), ("rank", _rank(row)), ("ranks", _ranks(row)), ("letters", _letters(row))]
        line.append(("seeds", _seeds(row)))
        beside, sampled = self.columns.sampled
        for name, column in {**self.ranking, **self.columns.costs}.items():
            number, error = column.numbers(row)
            line += [(name, number)] + [(f"{name} ±", error)] * (name in WITH_ERROR)
            if name == beside:
                line.append((f"{name} ± with test examples", sampled.numbers(row)[1]))
            if column.marked:
                told = row.told_apart.get(column.marked)
                line.append((f"{name} told apart", "" if told is None else "yes" if told else "no"))
        names = [task.name for task in self.suite.tasks]
        cells = self.columns.cells(row) or [""] * len(names)
        return [*line, *zip(names, cells, strict=True), ("reason", row.reason)]

    def markdown(self) -> str:
        """Return the tables and the notes."""
        parts = []
        for title, header, lines in self.tables():
            ruler = ["---" if name == "method" else "---:" for name in header]
            table = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in [header, ruler, *lines])
            parts.append(f"## {_markdown(title)}\n\n{table}\n")
        notes = "\n\n".join(_markdown(note) for note in self.notes())
        return "\n".join([*parts, notes, ""])

    def show(self, output: Console) -> None:
        """Print the tables and the notes."""
        for title, header, lines in self.tables():
            table = Table(title=plain(title, "table.title"))
            for column in header:
                left = column == "method"
                table.add_column(plain(column.replace("_", "\n")), justify="left" if left else "right", overflow="fold")
            for line in lines:
                table.add_row(*map(plain, line))
            output.print(table)
        for note in self.notes():
            output.print(plain(note), soft_wrap=" did not run: " in note)


PUBLISHED_NOTE = "published gain: on {}, of the method as its paper ran it; settings may differ"


def _rank(row: Row) -> str:
    return "" if row.rank is None else str(row.rank)


def _ranks(row: Row) -> str:
    return "" if row.standing is None else f"{row.standing.best}–{row.standing.worst}"


def _letters(row: Row) -> str:
    return "" if row.standing is None else " ".join(row.standing.letters)


def _seeds(row: Row) -> str:
    return str(len(row.seeds) or "")


def _markdown(cell: str) -> str:
    """Return text as a cell of a Markdown table."""
    return str(plain(cell)).replace("\n", " ").replace("|", "\\|")
