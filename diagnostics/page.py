"""The report as one HTML page: no network, no script; figures inside; readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from bounds.types import Estimate
from diagnostics.report import SECTIONS, Report, settings_table
from diagnostics.svg import on_page


@dataclass(frozen=True)
class Drawings:
    """Figures by name: as SVG with placeholder colours, and as PNG on white in base 64."""

    figures: Mapping[str, str]
    pixels: Mapping[str, str]


def draw(report: Report) -> Drawings:
    """Draw every figure of the report."""
    from diagnostics.figures import draw_all  # matplotlib takes a second to import, and a cached report needs none

    images = draw_all(report)
    return Drawings({name: svg for name, (svg, _) in images.items()}, {name: png for name, (_, png) in images.items()})


def render(report: Report, drawings: Drawings) -> str:
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
    environment.filters.update(number=number, estimate=estimate, percent=percent, signed=signed, fixed=fixed)
    figures = {name: Markup(on_page(svg)) for name, svg in drawings.figures.items()}
    return environment.get_template("report.html.j2").render(
        report=report,
        figures=figures,
        titles={n: r.title for n, r in SECTIONS.items()},
        settings=settings_table(report.settings),
    )


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
