"""The report as one HTML page: no network, no script; figures inside; readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diagnostics.figures import numbers
from diagnostics.figures.svg import Drawing, on_page
from diagnostics.report import Report, settings_table, view_of
from diagnostics.sections.base import Drawn, View
from diagnostics.sections.table import SECTIONS
from diagnostics.terms.path import SweepPoint
from diagnostics.work.cache import Cache
from diagnostics.work.pieces import Keeper, Pieces

_FOLDER = Path(__file__).parent / "templates"
_NUMBERS = (numbers.number, numbers.estimate, numbers.percent, numbers.percents, numbers.signed, numbers.fixed)


def draw(report: Report, cache: Cache, workers: int = 1) -> dict[str, Drawing]:
    """Return every figure of the report, name-merge -> drawing; only those whose numbers changed are drawn anew."""
    drawings: dict[str, Drawing] = {}
    for index, merge in enumerate(report.merges):
        view = view_of(report.tasks, report.settings, merge)
        groups = []
        for name, section in SECTIONS.items():
            part = getattr(merge, name)
            for figure, drawn in section.figures.items() if part is not None else ():
                if not (drawn.once and index):
                    label = f"{figure}-{index + 1}"
                    groups.append(Pieces(f"figure-{label}", part, partial(_drawing, drawn, label, view, part), 1))
        keeper = Keeper(cache, view.reads, lambda: "figures", workers=workers)
        for group, (images,) in zip(groups, keeper.gather(groups, "figures"), strict=True):
            drawings[group.name.removeprefix("figure-")] = Drawing(**images)
    return drawings


def _drawing(drawn: Drawn[Any], label: str, view: View, part: Any, _: int) -> dict[str, str]:
    from diagnostics.figures.style import as_images  # matplotlib takes a second to import, a cached report needs none

    return vars(as_images(partial(drawn.draw, view, part), label))


def render(report: Report, drawings: Mapping[str, Drawing]) -> str:
    """Return the page.

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
    environment.filters.update({f.__name__: f for f in (*_NUMBERS, at_merge)})
    figures = {name: Markup(on_page(drawing.svg)) for name, drawing in drawings.items()}
    return environment.get_template("report.html.j2").render(
        report=report,
        figures=figures,
        sections=SECTIONS,
        settings=settings_table(report.settings),
    )


def at_merge(points: Sequence[SweepPoint]) -> SweepPoint:
    """Return the point of a path closest to s = 1."""
    return min(points, key=lambda point: abs(point.s - 1))
