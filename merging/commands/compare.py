"""``python -m merging compare --suite mini8 --methods all --out FOLDER``: every method on one suite, in one table."""

from __future__ import annotations

import csv
import io
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from bounds.types import InputError, refuse
from merging import records, suites
from merging.commands.evaluation import mean
from merging.commands.measure import REFERENCES, Measurement, Spec, measure_apart
from merging.commands.terminal import console, plain, run, track
from merging.files import check_destination, check_folder, encoded, write
from merging.methods import METHODS
from merging.plain import from_plain, to_plain
from merging.suites import Suite

SCHEMA = "mergebound.compare/1"
KEPT = "mergebound.measurement/1"
UNITS = (
    "accuracy and its mean in % on the test splits; KL = KL(expert ‖ merge) and cross-entropy in nats, means over "
    "tasks; distance ‖θ_m − θ_0‖; seconds: wall time of the merge; search: that of its search for a scale on "
    "validation, not in seconds; passes: examples that went forward and backward; MiB: peak resident memory of a "
    "process of its own that loads the suite and merges"
)
_Figure = Callable[[Measurement], float | None]
FIGURES: Mapping[str, tuple[_Figure, str]] = {
    "mean": (lambda m: 100 * mean(m.accuracy), ".1f"),
    "KL": (lambda m: mean(m.kl), ".3f"),
    "cross-entropy": (lambda m: mean(m.cross_entropy), ".3f"),
    "distance": (lambda m: m.distance, ".2f"),
    "seconds": (lambda m: m.seconds, ".3g"),
    "search": (lambda m: m.search_seconds, ".3g"),
    "passes": (lambda m: m.passes, ".0f"),
    "MiB": (lambda m: m.memory, ".0f"),
}
"""Column -> (figure of a measurement, or None where it has none; format)."""
FILES = ("compare.json", "compare.csv", "compare.md", "compare.svg", "compare.png")
"""What is written into the folder, besides the results."""


@dataclass(frozen=True)
class Command:
    """Merge a suite's experts with each method and write one table: terminal, JSON, CSV, Markdown and a figure.

    Each method runs in a process of its own. Results are kept in OUT/results by method, settings and suite; a second
    run measures only what is missing there (delete a file to measure it again).
    """

    suite: str = "mini8"
    """Experts and tasks: mini8, toy, a suite file .yaml, clip-ta8 and the like, or package.module:function."""
    methods: tuple[str, ...] = ("all",)
    """Rows of the table of methods (python -m merging list), or all; with settings as ties:density=0.1,scale=1."""
    out: Path = Path("compare")
    """Folder of results and tables."""
    threads: int = 1
    """Threads of PyTorch. The shipped suites are small and run fastest on one; large models want every core."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    command = tyro.cli(Command, args=arguments, prog="python -m merging compare", description=Command.__doc__)
    _print(*compare(command), command.out)


def compare(command: Command) -> tuple[list[Measurement], Suite]:
    """Measure what is missing, then write the tables and the figure; return all measurements, best mean first.

    Raises:
        InputError: unknown suite, method or setting; a folder that cannot be written; no method that runs on the suite.
    """
    specs = parse(command.methods)
    if command.threads < 1:
        refuse("threads", expected="at least 1", got=command.threads, cure="raise it")
    check_folder(command.out, "output", FILES, parents=True)
    suite = suites.load(command.suite)
    folder = check_folder(command.out / "results", "output", parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [spec.key(suite) for spec in specs]
    paths = [check_destination(folder / f"{s.method}-{key}.json") for s, key in zip(specs, keys, strict=True)]
    found = []
    for spec, key, path in track(list(zip(specs, keys, paths, strict=True)), f"merging {suite.name}"):
        found.append(kept(path, key, spec, lambda spec=spec: measure_apart(spec, command.suite, command.threads)))
    done = sorted((m for m in found if not m.reason), key=lambda m: mean(m.accuracy), reverse=True)
    if not any(m.method in METHODS for m in done):
        refuse("methods", expected="one that runs on the suite", got=found[-1].reason, cure="choose other methods")
    rows = [*done, *(m for m in found if m.reason)]
    _write_all(rows, suite, command.out)
    return rows, suite


def parse(texts: Sequence[str]) -> list[Spec]:
    """Return the references and the methods that texts like ``all`` or ``ties:density=0.1`` name, each once.

    Raises:
        InputError: unknown method or setting, a value out of range, a text that is not NAME=VALUE.
    """
    wanted = [name for text in texts for name in (METHODS if text == "all" else [text])]
    specs = {text: _spec(text) for text in (*REFERENCES, *wanted)}
    return list(specs.values())


def _spec(text: str) -> Spec:
    method, _, rest = text.partition(":")
    given = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        hints = typing.get_type_hints(METHODS[method].settings) if method in METHODS else {}
        if not equals or name not in hints:
            known = "NAME=VALUE of " + (" or ".join(hints) or "none")
            refuse(f"setting of {method}", expected=known, got=repr(part), cure="see python -m merging list")
        given[name] = _value(name, value, hints[name])
    spec = Spec(method, given)
    _ = spec.settings  # refuses what is unknown or out of range before any work
    return spec


def _value(name: str, text: str, hint: Any) -> object:
    """Read a value as the first of the setting's types that it fits."""
    kinds = {hint, *typing.get_args(hint)}
    constants = {"None": None, "True": True, "False": False}
    if text in constants and type(constants[text]) in kinds:
        return constants[text]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if kinds & {int, float, bool}:
        refuse(name, expected=getattr(hint, "__name__", str(hint)), got=repr(text), cure="write one")
    return text


def kept(path: Path, key: str, spec: Spec, measure: Callable[[], Measurement]) -> Measurement:
    """Return the measurement that a file keeps, else make it and keep it; what could not run is not kept.

    Args:
        path: the file.
        key: :meth:`Spec.key`, of the method, its settings and the suite.
        spec: the method.
        measure: makes the measurement.
    """
    found = read_kept(path, key)
    if found is None:
        found = measure()
        if not found.reason:
            _write(path, records.to_json(to_plain(Kept(KEPT, key, found))))
    return replace(found, label=spec.label)


@dataclass(frozen=True)
class Kept:
    """The file of one measurement, with the key of the specification and suite that it belongs to."""

    schema: str
    key: str
    measurement: Measurement


def read_kept(path: Path, key: str) -> Measurement | None:
    """Return a kept measurement; one that is damaged, of another version or of another key is made again."""
    try:
        found = from_plain(Kept, records.read_json(path, KEPT, f"result {path}", ""))
    except InputError:
        return None
    return found.measurement if found.key == key else None


def _write_all(rows: Sequence[Measurement], suite: Suite, out: Path) -> None:
    names = [task.name for task in suite.tasks]
    content = {"schema": SCHEMA, "suite": suite.name, "sources": dict(suite.sources), "tasks": names, "units": UNITS}
    content["rows"] = [asdict(row) for row in rows]
    _write(out / "compare.json", json.dumps(content, ensure_ascii=False, indent=1, default=str))
    header = ["method", *FIGURES, *names]
    cells = [_cells(row, len(names)) for row in rows]
    text = io.StringIO()
    csv.writer(text).writerows([[*header, "reason"], *([*c, row.reason] for c, row in zip(cells, rows, strict=True))])
    _write(out / "compare.csv", text.getvalue())
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    table = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
    reasons = "".join(f"\n- `{row.label}` did not run: {row.reason}" for row in rows if row.reason)
    _write(out / "compare.md", f"{table}\n\nSuite {suite.name}; {UNITS}.\n{reasons}\n")
    from merging.commands.compare_figure import draw  # matplotlib takes a third of a second to import

    for suffix, image in draw([row for row in rows if not row.reason], suite.name).items():
        _write(out / f"compare.{suffix}", image)


def _write(path: Path, content: str | bytes) -> None:
    data = encoded(content) if isinstance(content, str) else content
    write(path, lambda file: file.write(data))


def _markdown(cell: str) -> str:
    """Return text as a cell of a Markdown table."""
    return str(plain(cell)).replace("\n", " ").replace("|", "\\|")


def _cells(row: Measurement, tasks: int) -> list[str]:
    if row.reason:
        return [row.label, *[""] * (len(FIGURES) + tasks)]
    values = [(figure(row), form) for figure, form in FIGURES.values()]
    shown = ["" if value is None else format(value, form) for value, form in values]
    return [row.label, *shown, *(f"{100 * a:.1f}" for a in row.accuracy)]


def _print(rows: Sequence[Measurement], suite: Suite, out: Path) -> None:
    names, output = [task.name.replace("_", "\n") for task in suite.tasks], console()
    first, last = 1 + len(FIGURES), len(names)
    cells = [_cells(row, len(names)) for row in rows if not row.reason]
    parts: tuple[tuple[str, list[str], Callable[[list[str]], list[str]]], ...] = (
        (f"merges of {suite.name}", ["method", *FIGURES], lambda c: c[:first]),
        (f"test accuracy (%) on {suite.name}", ["method", *names], lambda c: [c[0], *c[-last:]]),
    )
    for title, header, part in parts:
        table = Table(title=plain(title, "table.title"))
        for column in header:
            table.add_column(plain(column), justify="left" if column == "method" else "right")
        for line in cells:
            table.add_row(*part(line))
        output.print(table)
    output.print(UNITS)
    for row in rows:
        if row.reason:
            output.print(plain(f"{row.label} did not run: {row.reason}"), soft_wrap=True)
    output.print(f"{plain(str(out))}: {', '.join(FILES)}", soft_wrap=True)
