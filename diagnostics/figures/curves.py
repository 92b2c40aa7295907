"""Figures over distance and over tasks: the sweep with its controls, the ladder, the certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bounds.theorems.single_model import READINGS
from diagnostics.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    READING_STYLES,
    SKY,
    VERMILION,
    legend_below,
    new_figure,
)
from diagnostics.report import MergeReport, Report
from diagnostics.sections.sweep import SweepPath, SweepSection


def sweep(report: Report, merge: MergeReport) -> Figure:
    """Risk, three bounds, ε⁺ (above) and residual (below) along the merge's path."""
    assert merge.sweep
    return draw_path(merge.sweep, merge.sweep.paths[0], merge.bound.trivial_risk if merge.bound else None)


def draw_path(section: SweepSection, path: SweepPath, trivial: float | None) -> Figure:
    """Draw one path of a sweep; drift and sharpness have panels of their own where they were measured."""
    local = [name for name in ("rotation", "sharpness") if getattr(path.points[0], name) is not None]
    figure = new_figure(5.2 + 1.3 * len(local))
    axes, below, *more = figure.subplots(
        2 + len(local), 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1, *[1] * len(local)]}
    )
    distance = [p.distance for p in path.points]
    _draw_risks(axes, section, path, trivial)
    below.plot(distance, [p.residual for p in path.points], color=PURPLE, marker="o", markersize=3.5)
    below.axhline(path.tolerance, color=FAINT, linestyle="--", linewidth=1)
    below.set_ylabel("residual\n(ratio)")
    below.set_ylim(0, None)
    for name, panel in zip(local, more, strict=True):
        (_draw_drift if name == "rotation" else _draw_sharpness)(panel, section, path)
    for panel in (axes, below, *more):
        panel.axvline(path.norm, color=INK, linestyle=":", linewidth=1)
        if path.ntk_radius is not None:
            panel.axvspan(0, path.ntk_radius, color=SKY, alpha=0.2, linewidth=0)
    [axes, below, *more][-1].set_xlabel(
        "distance ‖θ(s) − θ_0‖ (weights), θ(s) = θ_0 + s·d; residual ‖f − f^lin‖/‖f − f_0‖"
    )
    radius = "never" if path.ntk_radius is None else f"{path.ntk_radius:.2f}"
    title = f"{path.name}: dotted line s = 1; shaded: NTK radius {radius} (residual {path.tolerance:g})"
    axes.set_title(title, loc="left")
    legend_below(figure, axes, 3)
    return figure


def _draw_risks(axes: Any, section: SweepSection, path: SweepPath, trivial: float | None) -> None:
    distance = [p.distance for p in path.points]
    for reading in READINGS:
        colour, marker, line = READING_STYLES[reading]
        values = [p.bounds[reading] for p in path.points]
        axes.plot(
            distance, values, color=colour, marker=marker, markersize=4, linestyle=line, label=f"bound, {reading}"
        )
    axes.errorbar(
        distance, [p.risk.value for p in path.points], yerr=[2 * p.risk.stderr for p in path.points], color=INK,
        marker="D", markersize=3.5, capsize=2, label="measured risk (± 2 s.e.)",
    )  # fmt: skip
    linear = [p.linear_risk.value for p in path.points]
    axes.plot(distance, linear, color=SKY, linestyle=":", marker=".", label="risk of f^lin")
    axes.plot(distance, [p.transfer.value for p in path.points], color=GREEN, marker="x", label="transfer error ε⁺")
    if trivial is not None:
        axes.axhline(trivial, color=FAINT, linestyle="--", linewidth=1, label=f"knowing nothing {trivial:.2f}")
    positive = [v for p in path.points for v in (*p.bounds.values(), p.risk.value) if v > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5 * min(positive))
    axes.set_ylabel(f"cross-entropy (nats)\nn = {section.examples} per task")


def _draw_drift(axes: Any, section: SweepSection, path: SweepPath) -> None:
    distance = [p.distance for p in path.points]
    rotations = [p.rotation for p in path.points]
    axes.plot(distance, rotations, color=VERMILION, marker="o", markersize=3.5, label="rotation S")
    changes = [p.relative_change for p in path.points]
    axes.plot(distance, changes, color=BLUE, marker="s", markersize=3.5, linestyle="--", label="‖K_s − K_0‖/‖K_0‖")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"drift of eNTK\n(ratio), n = {section.gram_examples}")
    axes.legend(fontsize=7, frameon=False)


def _draw_sharpness(axes: Any, section: SweepSection, path: SweepPath) -> None:
    values = [p.sharpness for p in path.points]
    axes.plot([p.distance for p in path.points], values, color=ORANGE, marker="s", markersize=3.5)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.set_ylabel(f"sharpness (nats)\nρ = {section.rho:g}, n = {section.examples}")


CONTROL_STYLES: Mapping[str, tuple[str, str]] = {
    "merge": (VERMILION, "the merge"),
    "expert": (BLUE, "an expert"),
    "random": (FAINT, "a random direction"),
}
"""Colour of a path's kind, and what it leads to."""


def controls(report: Report, merge: MergeReport) -> Figure:
    """Measured risk, corrected bound and residual over distance: the merge against experts and random directions."""
    assert merge.sweep
    figure = new_figure(4.8)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.6, 1]})
    labelled: set[str] = set()
    for path in reversed(merge.sweep.paths):  # the merge last, on top
        distance, (colour, towards) = [p.distance for p in path.points], CONTROL_STYLES[path.kind]
        new, width = path.kind not in labelled, 1.6 if path.kind == "merge" else 1.0
        labelled.add(path.kind)
        for values, marker, line, what in (
            ([p.bounds["corrected"] for p in path.points], "o", "-", "corrected bound"),
            ([p.risk.value for p in path.points], "D", ":", "measured risk"),
        ):
            label = f"{what}, towards {towards}" if new else None
            axes.plot(
                distance, values, color=colour, marker=marker, markersize=3.5, linestyle=line, linewidth=width,
                label=label,
            )  # fmt: skip
        below.plot(distance, [p.residual for p in path.points], color=colour, marker="o", markersize=3, linewidth=width)
    values = [v for p in merge.sweep.paths for q in p.points for v in (q.bounds["corrected"], q.risk.value)]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_ylabel(f"cross-entropy (nats)\nn = {merge.sweep.examples} per task")
    below.axhline(report.settings.tolerance, color=FAINT, linestyle="--", linewidth=1)
    below.set_ylabel("residual (ratio)")
    below.set_ylim(0, None)
    below.set_xlabel("distance ‖θ(s) − θ_0‖ (Euclidean, weights); dashed: tolerance of the residual")
    legend_below(figure, axes, 2)
    return figure


def ladder(report: Report, merge: MergeReport) -> Figure:
    """Rungs of (8) per task: what each inequality costs."""
    assert merge.distillation
    figure = new_figure(3.5)
    axes = figure.subplots()
    part = merge.distillation
    rungs: dict[str, Any] = {r.name: r for r in (*part.rungs, part.disagreement)}
    styles = {
        "disagreement": (INK, "x"),
        "total variation": (BLUE, "o"),
        "Pinsker": (ORANGE, "s"),
        "Bretagnolle-Huber": (GREEN, "^"),
    }
    names = [*report.tasks, "all tasks"]
    for shift, (name, (colour, marker)) in enumerate(styles.items()):
        values = [*rungs[name].per_task, rungs[name].total]
        at = [k + 0.13 * (shift - 1.5) for k in range(len(values))]
        axes.errorbar(
            at, [v.value for v in values], yerr=[2 * v.stderr for v in values], color=colour, marker=marker,
            markersize=4.5, linestyle="", capsize=2, label=name,
        )  # fmt: skip
    sizes = sorted({e.n for e in part.disagreement.per_task})
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylim(0, None)
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    axes.set_ylabel(f"added 0-1 risk, at most (± 2 s.e.)\nn = {n} test examples")
    legend_below(figure, axes, 4)
    return figure


def certified(report: Report, merge: MergeReport) -> Figure:
    """Certified 0-1 error next to the validation and test error: pooled statements above, tasks below."""
    assert merge.certificates
    part = merge.certificates
    entries = [(r.name.split(", pooled")[0] + f" {r.equation}", r.observed, r.value, r.test_error) for r in part.rows]
    entries += [(t.task, t.observed, t.value, t.test_error) for t in part.tasks]
    figure = new_figure(1.2 + 0.27 * max(1, len(entries)))
    axes = figure.subplots()
    for row, (_, observed, value, test) in enumerate(entries):
        axes.plot([100 * observed, 100 * value], [row, row], color=FAINT, linewidth=1.2, zorder=1)
        for x, colour, marker, label in (
            (observed, BLUE, "o", "observed on validation (teachers + disagreement for (11))"),
            (value, VERMILION, "|", "certified, at most"),
            (test, INK, "x", "test error"),
        ):
            size = 11 if marker == "|" else 5
            axes.plot(
                100 * x, row, color=colour, marker=marker, markersize=size, markeredgewidth=1.6, linestyle="",
                label=None if row else label,
            )  # fmt: skip
    if part.tasks:
        axes.axhline(len(part.rows) - 0.5, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(entries)), [e[0] for e in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel(f"0-1 error (%), n = {part.n} validation labels in all")
    legend_below(figure, axes, 1)
    return figure
