"""The report as one HTML page: no network, no script; figures inside; readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
from markupsafe import Markup

from bounds.types import Estimate
from diagnostics.figures.svg import on_page
from diagnostics.report import SECTIONS, MergeReport, Report, settings_table
from diagnostics.terms.path import SweepPoint
from diagnostics.work.cache import Cache, digest
from diagnostics.work.workers import each


@dataclass(frozen=True)
class Drawing:
    """One figure: as SVG with placeholder colours, and as PNG on white in base 64."""

    svg: str
    png: str


FIGURES: Mapping[str, tuple[str, ...]] = {
    "terms": ("bound", "accuracy"),
    "cross_risk": ("heterogeneity",),
    "flatness": ("flatness",),
    "kernel": ("entk",),
    "ladder": ("distillation",),
    "certificates": ("certificates",),
    "sweep": ("sweep", "bound"),
    "controls": ("sweep",),
}
"""Figure -> the sections that it shows; without the first there is none."""


def draw(report: Report, cache: Cache, workers: int = 1) -> dict[str, Drawing]:
    """Return every figure of the report, name-merge -> drawing; only those whose numbers changed are drawn anew."""
    wanted: dict[str, tuple[str, MergeReport]] = {}
    keys: dict[str, str] = {}
    for index, merge in enumerate(report.merges):
        for name, sections in FIGURES.items():
            if getattr(merge, sections[0]) is None or (name == "cross_risk" and index):
                continue  # the cross-risk is the experts': one for all merges
            label = f"{name}-{index + 1}"
            wanted[label] = name, merge
            keys[label] = digest(report.tasks, report.settings, [getattr(merge, section) for section in sections])
    new = [label for label in wanted if not cache.has(f"figure-{label}", keys[label])]
    made = dict(zip(new, _drawn(report, wanted, new, workers), strict=True)) if new else {}

    def again(label: str) -> Drawing:  # what is kept can be damaged
        return made[label] if label in made else next(_drawn(report, wanted, [label], 1))

    return {label: cache.data(Drawing, f"figure-{label}", key, partial(again, label)) for label, key in keys.items()}


def _drawn(
    report: Report, wanted: Mapping[str, tuple[str, MergeReport]], labels: Sequence[str], workers: int
) -> Iterator[Drawing]:
    from diagnostics.figures import draw_figure  # matplotlib takes a second to import, and a cached report needs none

    def one(label: str) -> tuple[str, str]:
        name, merge = wanted[label]
        return draw_figure(name, label, report, merge)

    return (Drawing(*images) for images in each(one, labels, workers=workers))


def render(report: Report, drawings: Mapping[str, Drawing]) -> str:
    """Return the page.

    Raises:
        jinja2.UndefinedError: the template names something that the report does not have.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diagnostics", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, estimate=estimate, percent=percent, signed=signed, fixed=fixed, at_merge=at_merge
    )
    figures = {name: Markup(on_page(drawing.svg)) for name, drawing in drawings.items()}
    return environment.get_template("report.html.j2").render(
        report=report,
        figures=figures,
        titles={n: r.title for n, r in SECTIONS.items()},
        settings=settings_table(report.settings),
    )


def at_merge(points: Sequence[SweepPoint]) -> SweepPoint:
    """Return the point of a path closest to s = 1."""
    return min(points, key=lambda point: abs(point.s - 1))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant figures; a dash for none."""
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def fixed(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` decimals."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def percent(value: float) -> str:
    """Return a rate in per cent with one decimal."""
    return f"{100 * value:.1f}"


def estimate(value: Estimate | Any) -> str:
    """Return a value and, if it has one, its standard error."""
    text = f"{value.value:.3f}".replace("-", "−")
    return f"{text} ± {value.stderr:.3f}" if value.stderr else text
