"""A comparison as tables: on the terminal, in Markdown, in CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bounds.types import Estimate
from merging.commands.compare_rows import OverSeeds, Row
from merging.commands.ranks import LEVEL, counted
from merging.commands.terminal import plain
from merging.plain import to_plain
from merging.suites import Suite, published

SCHEMA = "mergebound.compare/2"
NEAR = "≈"
"""Marks a difference of less than two standard errors."""
READING = (
    f"#: rank of the merges by mean. {NEAR}: less than two standard errors, so the test examples do not tell the two "
    "apart. ± after mean, KL and cross-entropy: standard error over seeds. ± after gain and differences: standard "
    "error over test examples, which are paired, and over seeds where there are several. ranks: those that a merge may "
    "have; letters: merges that share one are not told apart. Both look at all pairs of merges together: that any pair "
    f"is told apart wrongly, or any true rank left out, has probability {LEVEL:.0%} at most (Holm)."
)
UNITS = (
    "mean: test accuracy in %, mean over tasks; gain: (mean − pretrained) / (experts − pretrained); to best, to # "
    "above: mean less that of the best merge and of the merge one rank above, in points; KL = KL(expert ‖ merge) and "
    "cross-entropy in nats, means over tasks; distance ‖θ_m − θ_0‖; seconds: wall time of the merge; search: that of "
    "its search for a scale on validation, not in seconds; passes: examples that went forward and backward; MiB: peak "
    "resident memory of a process of its own that loads the suite and merges; all means over seeds"
)
ONE_SEED = "With one seed the errors of methods that draw are of the test examples alone: --seeds 5 adds the draw's."
FEW_SEEDS = (
    "An error over fewer than five seeds is itself uncertain: where draws vary more than test examples do, two "
    "standard errors hold the truth in 7 (two seeds) or 8 (three) of 10 cases instead of 19 of 20."
)


@dataclass(frozen=True)
class Column:
    """A figure of a row: what it is, how it is written, times what, and the comparison whose ``≈`` it carries."""

    value: Callable[[Row], Estimate | OverSeeds | float | None]
    form: str
    factor: float = 1.0
    marked: str = ""

    def numbers(self, row: Row) -> tuple[str, str]:
        """Return the figure and its standard error as text, empty where there is none."""
        found = self.value(row)
        if found is None:
            return "", ""
        value, error = (found, None) if isinstance(found, (int, float)) else (found.value, found.stderr)
        shown = format(self.factor * error, self.form.removeprefix("+")) if error else ""
        return format(self.factor * value, self.form), shown

    def cell(self, row: Row) -> str:
        """Return the figure with its error and its mark, in one cell."""
        number, error = self.numbers(row)
        if self.marked == "best" and row.is_best:
            return "best"
        near = row.told_apart.get(self.marked) is False
        return number + (f" ± {error}" if error else "") + (f" {NEAR}" if near else "")


RANKING: Mapping[str, Column] = {
    "mean": Column(lambda row: row.mean, ".1f", 100),
    "gain": Column(lambda row: row.gain, ".2f"),
    "to best": Column(lambda row: row.to_best, "+.1f", 100, "best"),
    "to # above": Column(lambda row: row.to_above, "+.1f", 100, "above"),
}
PUBLISHED: Mapping[str, Column] = {"published gain": Column(lambda row: row.published_gain, ".2f")}
COSTS: Mapping[str, Column] = {
    "KL": Column(lambda row: row.kl, ".3f"),
    "cross-entropy": Column(lambda row: row.cross_entropy, ".3f"),
    "distance": Column(lambda row: row.distance, ".2f"),
    "seconds": Column(lambda row: row.seconds, ".3g"),
    "search": Column(lambda row: row.search_seconds, ".3g"),
    "passes": Column(lambda row: row.passes, ".0f"),
    "MiB": Column(lambda row: row.memory, ".0f"),
}
SAMPLED = Column(lambda row: row.sampled, ".1f", 100)
"""The mean with its error over test examples and seeds."""
_WITH_ERROR = ("mean", "gain", "to best", "to # above", "KL", "cross-entropy")


@dataclass(frozen=True)
class Shown:
    """A comparison that is shown: rows, best mean first, the suite, and whose published gains stand beside."""

    rows: Sequence[Row]
    suite: Suite
    published: str = ""

    @property
    def done(self) -> list[Row]:
        """The rows that ran."""
        return [row for row in self.rows if not row.reason]

    @property
    def ranking(self) -> Mapping[str, Column]:
        """Columns of the first table."""
        return {**RANKING, **(PUBLISHED if self.published else {})}

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, header and lines of each table."""
        names = [task.name for task in self.suite.tasks]
        first = [
            [_rank(r), r.label, _seeds(r), *(c.cell(r) for c in self.ranking.values()), _ranks(r), _letters(r)]
            for r in self.done
        ]
        costs = [[row.label, *(column.cell(row) for column in COSTS.values())] for row in self.done]
        tasks = [[row.label, *(f"{100 * a:.1f}" for a in row.accuracy)] for row in self.done]
        return [
            (f"merges of {self.suite.name}", ["#", "method", "seeds", *self.ranking, "ranks", "letters"], first),
            (f"distances and costs on {self.suite.name}", ["method", *COSTS], costs),
            (f"test accuracy (%) on {self.suite.name}", ["method", *names], tasks),
        ]

    def notes(self) -> list[str]:
        """Return what is to be read with the tables: which rows may be as good as the best, units, what did not run."""
        best = next(row for row in self.rows if row.is_best)
        near = ", ".join(row.label for row in self.rows if row.is_near_best) or "none"
        lines = [f"Not told apart from the best merge, {best.label}: {near}."]
        lines += [counted({row.label: row.standing for row in self.rows if row.standing}), READING, f"{UNITS}."]
        seeds = max(len(row.seeds) for row in self.done)
        lines += [ONE_SEED] * (seeds == 1) + [FEW_SEEDS] * (1 < seeds < 5)
        if self.published:
            lines.append(f"{PUBLISHED_NOTE.format(self.published)}; {published.FAMILY}.")
        return [*lines, *(f"{row.label} did not run: {row.reason}" for row in self.rows if row.reason)]

    def json(self) -> str:
        """Return everything as JSON: accuracies in 0..1, a number that is not finite as null."""
        names = [task.name for task in self.suite.tasks]
        content = {"schema": SCHEMA, "suite": self.suite.name, "sources": dict(self.suite.sources), "tasks": names}
        content |= {"reading": READING, "units": UNITS, "rows": [to_plain(row) for row in self.rows]}
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
        for name, column in {**self.ranking, **COSTS}.items():
            number, error = column.numbers(row)
            line += [(name, number)] + [(f"{name} ±", error)] * (name in _WITH_ERROR)
            if name == "mean":
                line.append(("mean ± with test examples", SAMPLED.numbers(row)[1]))
            if column.marked:
                told = row.told_apart.get(column.marked)
                line.append((f"{name} told apart", "" if told is None else "yes" if told else "no"))
        names = [task.name for task in self.suite.tasks]
        cells = [f"{100 * a:.1f}" for a in row.accuracy] or [""] * len(names)
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
