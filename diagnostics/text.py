"""The report on a terminal: what the numbers say in sentences, then one small table per section."""

from __future__ import annotations

from rich.console import Console

from diagnostics.report import Report, parts_of
from diagnostics.sections import comparison
from diagnostics.sections.table import SECTIONS
from merging.commands import plain


def print_report(report: Report, console: Console) -> None:
    """Print the verdict and the tables of the sections that are there."""
    console.print()
    for sentence in report.verdict:
        console.print(plain(f"• {sentence}"))
    for name, section in SECTIONS.items():
        if section.table is None:
            continue
        for view, part in parts_of(name, report.tasks, report.settings, report.merges):
            console.print()
            console.print(section.table(view, part))
    if report.comparison:
        console.print()
        console.print(comparison.table(report.comparison))
    for label, reason in report.provenance.missing.items():
        console.print(plain(f"not computed: {label}: {reason}"))
