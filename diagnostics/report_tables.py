"""``mergebound report export report.json --latex | --csv | --markdown``: a report's tables for other documents.

LaTeX and Markdown have the tables that a terminal shows, a table per section and merge. CSV has the numbers behind them
as report.json holds them, none rounded: a table per list of records, each record a line.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from bounds.types import refuse
from diagnostics.folder import read_report
from diagnostics.report import Report, check_sections, parts_of
from diagnostics.sections import comparison
from diagnostics.sections.table import SECTIONS
from diagnostics.work.cache import write
from merging.commands import console, options, plain
from merging.files import check_folder, encoded
from merging.plain import to_plain

COMPARISON = "comparison"
_NAMES = ("name", "task")
"""Fields that name a record of a list; a list of records without one is counted from 1."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write a report's tables for a paper (LaTeX), a spreadsheet (CSV) or a page (Markdown).

    LaTeX and Markdown: the tables of the terminal, one per section and merge. CSV: every number of report.json,
    unrounded, one table per list of records.
    """

    report: Annotated[Path, tyro.conf.Positional]
    """The report.json."""
    latex: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tables for a LaTeX document; they need no package."""
    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Comma-separated values."""
    markdown: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tables for a Markdown page."""
    out: Path | None = None
    """Folder to write a file per table into; by default all of them go to standard output."""
    sections: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Only these: {' '.join(SECTIONS)} (default: all).")] = ()


def export(arguments: Sequence[str]) -> None:
    """Write the tables.

    Raises:
        InputError: no format or several, a file that is no report, an unknown section, a folder that cannot be written.
    """
    command = options(Command, arguments, "mergebound report export")
    chosen = [name for name in FORMATS if getattr(command, name)]
    if len(chosen) != 1:
        got = " and ".join(f"--{name}" for name in chosen) or "none"
        refuse("format", expected="one of --latex, --csv and --markdown", got=got, cure="choose one")
    form, sections = FORMATS[chosen[0]], check_sections(command.sections)
    texts = form.write(read_report(command.report), sections)
    if command.out is None:
        print("\n".join(form.heading.format(name) + text for name, text in texts.items()), end="")
        return
    files = {f"{name}.{form.suffix}": text for name, text in texts.items()}
    check_folder(command.out, "--out", list(files), parents=True)
    command.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write(command.out / name, encoded(text))
    console().print(plain(f"{command.out}: {', '.join(files)}"), soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A table as it is printed: texts alone.

    ``right`` says which columns are justified to the right, ``ends`` after which rows a line is drawn.
    """

    title: str
    caption: str
    header: tuple[str, ...]
    right: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    ends: tuple[bool, ...]


def shown(report: Report, sections: Sequence[str]) -> dict[str, Shown]:
    """Return the tables of a terminal by name: the section, with the merge's number where there are several."""
    found: dict[str, Shown] = {}
    for name in sections:
        table = SECTIONS[name].table
        for index, (view, part) in enumerate(parts_of(name, report.tasks, report.settings, report.merges)):
            if table is not None:
                found[name if len(report.merges) == 1 else f"{name}-{index + 1}"] = _texts(table(view, part))
    if report.comparison is not None:
        found[COMPARISON] = _texts(comparison.table(report.comparison))
    return found


def _texts(table: Table) -> Shown:
    def text(cell: Any) -> str:
        return " ".join(str(plain(str(cell))).split())

    columns = [[text(cell) for cell in column.cells] for column in table.columns]
    return Shown(
        title=text(table.title or ""),
        caption=text(table.caption or ""),
        header=tuple(text(column.header) for column in table.columns),
        right=tuple(column.justify == "right" for column in table.columns),
        rows=tuple(zip(*columns, strict=True)),
        ends=tuple(row.end_section for row in table.rows),
    )


def as_latex(report: Report, sections: Sequence[str]) -> dict[str, str]:
    """Return every table as a float of LaTeX, by name."""
    return {name: latex_table(table) for name, table in shown(report, sections).items()}


def latex_table(table: Shown) -> str:
    """Return a table as a float of LaTeX that needs no package."""

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(map(latex, cells))} \\\\"

    columns = "".join("r" if right else "l" for right in table.right)
    lines = ["\\begin{table}[htbp]", "\\centering", f"\\caption{{{latex(table.title)}}}"]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\hline", line(table.header), "\\hline"]
    for row, end in zip(table.rows, table.ends, strict=True):
        lines += [line(row), *(["\\hline"] * end)]
    lines += ["\\hline", "\\end{tabular}"]
    if table.caption:
        lines.append(f"\\par{{\\footnotesize {latex(table.caption)}}}")
    return "\n".join([*lines, "\\end{table}", ""])


_ESCAPES: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
    "–": "--",
    "—": "---",
    "’": "'",
    "…": "\\dots{}",
}
_SYMBOLS: Mapping[str, str] = {
    "-": "-",  # of a number; others are hyphens
    "−": "-",
    "±": "\\pm",
    "·": "\\cdot",
    "×": "\\times",
    "≤": "\\le",
    "≥": "\\ge",
    "≈": "\\approx",
    "→": "\\to",
    "‖": "\\|",
    "∇": "\\nabla",
    "√": "\\surd",
    "∞": "\\infty",
    "∈": "\\in",
    "∑": "\\sum",
    "∆": "\\Delta",
    "½": "\\frac12",
    "ε": "\\varepsilon",
}
_CAPITAL = ["gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "upsilon", "phi", "psi", "omega"]
"""Capitals of which LaTeX has a sign: all others look like Latin ones."""
_SMALL = [*_CAPITAL, *["alpha", "beta", "zeta", "eta", "iota", "kappa", "mu", "nu", "rho", "tau", "chi"]]
_SIGN = re.compile(
    r"(?P<sign>[^\x00-\x7f]|[A-Za-z](?=\u0302)|(?<![\w)])-(?=\d))(?P<hat>\u0302?)(?:_(?P<index>[0-9A-Za-z]+))?|.",
    re.DOTALL,
)


def latex(text: str) -> str:
    """Return text for LaTeX: its special characters escaped, the signs of the tables as mathematics.

    ``θ_0`` becomes a letter with an index. A character that is neither escaped nor a known sign stays as it is, for
    engines that read UTF-8.
    """
    whole = "".join(map(_latex_sign, _SIGN.finditer(text)))
    return re.sub(r"(?<!\\)\$\$", "", whole)  # signs side by side are one formula


def _latex_sign(match: re.Match[str]) -> str:
    sign = match["sign"]
    if sign is None:
        return _ESCAPES.get(match[0], match[0])
    symbol = sign if match["hat"] and sign.isascii() else _symbol(sign)
    if symbol is None:
        return "".join(_ESCAPES.get(character, character) for character in match[0])
    hatted = f"\\hat{{{symbol}}}" if match["hat"] else symbol
    return f"${hatted}_{{{match['index']}}}$" if match["index"] else f"${hatted}$"


def _symbol(sign: str) -> str | None:
    """Return the mathematics of a sign: of the table, a Greek letter, a raised or lowered one."""
    name, (kind, _, code) = unicodedata.name(sign, ""), unicodedata.decomposition(sign).partition(" ")
    if sign in _SYMBOLS:
        return _SYMBOLS[sign]
    if kind in ("<super>", "<sub>"):
        inner = _SYMBOLS.get(chr(int(code, 16)), chr(int(code, 16)))
        return f"{{}}{'^' if kind == '<super>' else '_'}{{{inner}}}"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    letter = greek[2].lower().replace("lamda", "lambda") if greek else ""
    if greek is None or letter not in (_SMALL if greek[1] == "SMALL" else _CAPITAL):
        return None
    return f"\\{letter}" if greek[1] == "SMALL" else f"\\{letter.capitalize()}"


def as_markdown(report: Report, sections: Sequence[str]) -> dict[str, str]:
    """Return every table in Markdown, with its title, by name."""
    return {name: markdown_table(table) for name, table in shown(report, sections).items()}


def markdown_table(table: Shown) -> str:
    """Return a table in Markdown, between its title and its caption."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_markdown, cells))} |"

    ruler = f"| {' | '.join('---:' if right else '---' for right in table.right)} |"
    caption = [_markdown(table.caption), ""] if table.caption else []
    return "\n".join(
        [f"### {_markdown(table.title)}", "", line(table.header), ruler, *map(line, table.rows), "", *caption]
    )


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<\[])", r"\\\1", text)


def as_csv(report: Report, sections: Sequence[str]) -> dict[str, str]:
    """Return the numbers of every section as comma-separated values, by name; a cell without a value is empty."""
    texts = {}
    for name, lines in records(report, sections).items():
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        texts[name] = out.getvalue()
    return texts


def records(report: Report, sections: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the records of every section by table, ``SECTION`` or ``SECTION.LIST``: column -> value.

    The first columns say where a record belongs: the merge, then each list on the way with the record's name or, from
    1, its place there. Lists over tasks are in the order of the report's tasks.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in sections:
        for merge in report.merges:
            part = getattr(merge, name)
            if part is not None:
                _collect(found, name, {"merge": merge.label}, to_plain(part))
    if report.comparison is not None:
        _collect(found, COMPARISON, {}, to_plain(report.comparison))
    return found


def _collect(found: dict[str, list[dict[str, Any]]], table: str, keys: Mapping[str, Any], record: Any) -> None:
    """Add a record as a line of its table, and the records of its lists as lines of theirs."""
    line: dict[str, Any] = {}
    lists: dict[str, Sequence[Any]] = {}
    _flatten("", record, line, lists)
    if line:
        found.setdefault(table, []).append({**keys, **line})
    for path, items in lists.items():
        for place, item in enumerate(items, 1):
            names = [item[name] for name in _NAMES if isinstance(item, Mapping) and isinstance(item.get(name), str)]
            _collect(found, f"{table}.{path}", {**keys, f"{path} #": names[0] if names else place}, item)


def _flatten(path: str, value: Any, line: dict[str, Any], lists: dict[str, Sequence[Any]]) -> None:
    """Split a value into cells and lists of records, both by path; a list of plain values is a cell for each."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(f"{path}.{name}" if path else str(name), inner, line, lists)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        lists[path] = value
    elif isinstance(value, list):
        line.update({f"{path}.{place}" if path else str(place): item for place, item in enumerate(value, 1)})
    else:
        line[path] = value


@dataclass(frozen=True, kw_only=True)
class Format:
    """How tables are written: name -> text, what heads each where all go to one place, the files' suffix."""

    write: Callable[[Report, Sequence[str]], dict[str, str]]
    heading: str
    suffix: str


FORMATS: Mapping[str, Format] = {
    "latex": Format(write=as_latex, heading="% {}\n", suffix="tex"),
    "csv": Format(write=as_csv, heading="# {}\n", suffix="csv"),
    "markdown": Format(write=as_markdown, heading="", suffix="md"),
}
