"""The report as one HTML page: no network, no script; figures inside; readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from bounds.theorems import KINDS
from diagnostics.equations import EQUATIONS, anchors, theory_file
from diagnostics.figures import numbers
from diagnostics.figures.notation import typeset
from diagnostics.figures.svg import Drawing, on_page
from diagnostics.report import Report, settings_table, view_of
from diagnostics.sections import comparison
from diagnostics.sections.base import Drawn, View
from diagnostics.sections.table import SECTIONS, serving
from diagnostics.terms.path import SweepPoint
from diagnostics.work.cache import Cache
from diagnostics.work.pieces import Keeper, Pieces

_FOLDER = Path(__file__).parent / "templates"
_NUMBERS = (
    numbers.number,
    numbers.number_estimate,
    numbers.estimate,
    numbers.percent,
    numbers.percent_estimate,
    numbers.p_value,
    numbers.points,
    numbers.signed,
    numbers.signed_estimate,
    numbers.fixed,
)


def draw(report: Report, cache: Cache, workers: int = 1) -> dict[str, Drawing]:
    """Return every figure of the report, name-merge -> drawing; only those whose numbers changed are drawn anew."""
    drawings: dict[str, Drawing] = {}
    for index, merge in enumerate(report.merges):
        view = view_of(report.tasks, report.settings, merge)
        groups = []
        for name, section in SECTIONS.items():
            part = getattr(merge, name)
            for figure, drawn in section.figures.items() if part is not None else ():
                if not (drawn.once and index) and drawn.there(part):
                    label = f"{figure}-{index + 1}"
                    groups.append(Pieces(f"figure-{label}", part, partial(_drawing, drawn, label, view, part), 1))
        keeper = Keeper(cache, view.reads, lambda: "figures", workers=workers)
        for group, (images,) in zip(groups, keeper.gather(groups, "figures"), strict=True):
            drawings[group.name.removeprefix("figure-")] = Drawing(**images)
    return drawings


def _drawing(drawn: Drawn[Any], label: str, view: View, part: Any, _: int) -> dict[str, str]:
    from diagnostics.figures.style import as_images  # matplotlib takes a second to import, a cached report needs none

    return vars(as_images(partial(drawn.draw, view, part), label))


def render(report: Report, drawings: Mapping[str, Drawing], theory: str = "") -> str:
    """Return the page.

    Args:
        report: what it shows.
        drawings: figures by name, as :func:`draw` makes them.
        theory: where docs/theory.md lies, seen from the page; "" where that is not known.

    Raises:
        jinja2.UndefinedError: the template names something that the report does not have.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_FOLDER, *dict.fromkeys(s.folder for s in SECTIONS.values())]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({f.__name__: f for f in (*_NUMBERS, at_merge, ranked, titled, zipped)})
    figures = {name: Markup(on_page(drawing.svg)) for name, drawing in drawings.items()}
    path = theory_file()
    anchors_of = anchors(path.read_text(encoding="utf-8")) if theory and path is not None else {}
    home: dict[str, str] = {}
    shown = serving(report.scored)
    for name in ("comparison", *shown) if report.comparison else shown:
        for number in comparison.HOW if name == "comparison" else SECTIONS[name].how:
            home.setdefault(number, name)
    page = environment.get_template("report.html.j2").render(
        report=report,
        figures=figures,
        sections=shown,
        left_out=_left_out(report),
        settings=settings_table(report.settings),
        equations=EQUATIONS,
        verdicts=[(merge.label, _own(report.verdict, merge.label)) for merge in report.merges],
        comparison_how=comparison.HOW,
        worst_first=comparison.worst_first(report.comparison) if report.comparison else [],
        circular=comparison.warning(),
        chance_level=comparison.LEVEL,
        enumerated=comparison.ENUMERATED,
        home=home,
        explanations={kind.name: kind.explanation for kind in KINDS},
        theory=theory if anchors_of else "",
        anchors=anchors_of,
    )
    names = [*report.tasks, *(text for merge in report.merges for text in (merge.label, merge.file))]
    return typeset(page, names, home)


def _left_out(report: Report) -> dict[str, str]:
    """Return title -> reason of what does not serve the report's kind of task."""
    titles = {**{name: section.title for name, section in SECTIONS.items()}, "comparison": "Comparison"}
    served = {*serving(report.scored), *(() if report.scored not in comparison.SCORED else ("comparison",))}
    return {
        title: report.provenance.missing[name]
        for name, title in titles.items()
        if name not in served and name in report.provenance.missing
    }


def _own(verdict: Sequence[str], label: str) -> list[str]:
    """Return a merge's sentences of a verdict on several, without its name before each."""
    return [sentence.removeprefix(f"{label}: ") for sentence in verdict if sentence.startswith(f"{label}: ")]


def titled(svg: Markup, text: str) -> Markup:
    """Return a figure with its name for readers that cannot see it."""
    named = f'role="img" aria-label="{escape(text)}"'
    return Markup(str.replace(svg, 'role="img"', named, 1))  # Markup's own replace would escape the quotes


def ranked(values: Sequence[float]) -> list[tuple[float, int]]:
    """Return values with their places, the largest first."""
    return sorted(((value, at) for at, value in enumerate(values)), reverse=True)


def zipped(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return pairs."""
    return list(zip(first, second, strict=True))


def at_merge(points: Sequence[SweepPoint]) -> SweepPoint:
    """Return the point of a path closest to s = 1."""
    return min(points, key=lambda point: abs(point.s - 1))
