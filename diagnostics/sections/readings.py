"""Bound (5) in its readings, term by term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bounds.types import Bound, Estimate, Status
from diagnostics.figures.svg import FAINT, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class TermRow:
    """One summand of a bound; ``share`` is its value over the sum of all absolute values."""

    symbol: str
    name: str
    equation: str
    estimate: Estimate
    per_task: tuple[Estimate, ...]
    note: str
    share: float


@dataclass(frozen=True, kw_only=True)
class ReadingRow:
    """One reading of the bound: its value (nats), the status of its worst term, its terms."""

    name: str
    reading: str
    value: float
    stderr: float
    status: Status
    vacuous: bool
    delta: float
    assumptions: tuple[str, ...]
    terms: tuple[TermRow, ...]


def reading_row(bound: Bound) -> ReadingRow:
    """Return a bound as the report keeps it."""
    terms = tuple(
        TermRow(
            symbol=t.symbol,
            name=t.name,
            equation=t.equation,
            estimate=t.estimate,
            per_task=t.per_task,
            note=t.note,
            share=bound.shares[t.symbol],
        )
        for t in bound.terms
    )
    return ReadingRow(
        name=bound.name,
        reading=bound.reading,
        value=bound.value,
        stderr=bound.stderr,
        status=bound.status,
        vacuous=bound.vacuous,
        delta=bound.delta,
        assumptions=bound.assumptions,
        terms=terms,
    )


def draw(rows: Sequence[ReadingRow], lines: Mapping[str, float], xlabel: str) -> Figure:
    """Stack the terms of every reading.

    Args:
        rows: the readings.
        lines: risks to compare with, by what they are called.
        xlabel: what is under the axis.
    """
    from diagnostics.figures import style

    figure = style.new_figure(3.6)
    axes = figure.subplots()
    readings = list(reversed(rows))
    labelled: set[str] = set()
    for row, reading in enumerate(readings):
        ends = {1: 0.0, -1: 0.0}
        for term in reading.terms:
            value = term.estimate.value
            sign = 1 if value >= 0 else -1
            colour, hatch = style.TERM_STYLES[term.name]
            axes.barh(
                row, value, left=ends[sign], height=0.55, color=colour, hatch=hatch, edgecolor=PAPER,
                linewidth=0.5, label=None if term.name in labelled else term.name,
            )  # fmt: skip
            labelled.add(term.name)
            ends[sign] += value
        axes.plot([reading.value] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
        state = "vacuous" if reading.vacuous else "not vacuous"
        axes.text(ends[1], row, f"  {reading.value:.2f}\n  {state}", va="center", fontsize=8)
    for (name, value), dash in zip(lines.items(), (":", "--"), strict=False):
        axes.axvline(value, color=INK, linestyle=dash, linewidth=1.3, label=f"{name} {value:.2f}")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(readings)), [r.reading for r in readings])
    axes.set_ylim(-0.5, len(readings) - 0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.17 * (right - left))
    axes.set_xlabel(xlabel)
    style.legend_below(figure, axes, 3)
    return figure
