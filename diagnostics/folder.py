"""A report as files: the page, report.json and every figure, in one folder."""

from __future__ import annotations

import os
from pathlib import Path

from diagnostics.equations import theory_file
from diagnostics.figures.figure_files import write_figures
from diagnostics.page import draw, render
from diagnostics.report import SCHEMA, Report
from diagnostics.work.cache import Cache, write
from merging import records
from merging.files import encoded
from merging.plain import from_plain, to_plain

FILES = ("report.html", "report.json")
"""What is written into the folder, besides figures and cache."""


def write_report(report: Report, folder: Path, cache: Cache, workers: int = 1) -> int:
    """Write page, JSON and figures into a folder, which is made; return the number of figures.

    Raises:
        InputError: see :func:`merging.files.replacing`.
    """
    folder.mkdir(exist_ok=True)
    drawings = draw(report, cache, workers)  # by the first process alone
    write_figures(folder / "figures", "report", drawings)
    write(folder / "report.html", encoded(render(report, drawings, _theory_from(folder))))
    write(folder / "report.json", encoded(as_json(report)))
    return len(drawings)


def _theory_from(folder: Path) -> str:
    """Return where docs/theory.md lies, seen from a folder of the same checkout; "" from elsewhere."""
    theory, folder = theory_file(), folder.resolve()
    if theory is None or not folder.is_relative_to(theory.parents[1]):
        return ""
    return Path(os.path.relpath(theory, folder)).as_posix()


def as_json(report: Report) -> str:
    """Return the text of report.json, with its digest."""
    return records.to_json(to_plain(report), indent=1)


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        InputError: no such file, not JSON, changed since it was written, another schema or other fields.
    """
    what, cure = f"report {path}", "make one with mergebound report"
    return from_plain(Report, records.read_json(path, SCHEMA, what, cure), what, cure)
