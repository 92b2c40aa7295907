"""The report's figures, each as PNG and SVG: stacked terms, distance sweep, cross-risk, ladder.

Colours are Okabe and Ito's, told apart by colour-blind readers and, with markers and line styles, in grey print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from diagnostics.report import READINGS, Report

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
TERM_COLOURS: Mapping[str, str] = {
    "experts' own risk": BLUE,
    "kernel-weighted noise": SKY,
    "complexity": ORANGE,
    "Poincaré flatness": YELLOW,
    "heterogeneity": VERMILION,
    "consensus gap": PURPLE,
    "Bregman gain": GREEN,
    "transfer error": "#777777",
}
READING_STYLES: Mapping[str, tuple[str, str, str]] = {
    "assumed-linear": (ORANGE, "s", "--"),
    "linearised": (BLUE, "^", "-."),
    "corrected": (VERMILION, "o", "-"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mergebound",
}


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Draw every figure into ``folder`` as NAME.png and NAME.svg; return the paths."""
    drawings: Mapping[str, Callable[[Report], Figure]] = {
        "terms": terms,
        "sweep": sweep,
        "cross_risk": cross_risk,
        "ladder": ladder,
    }
    paths = []
    with matplotlib.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = draw(report)
            paths += [folder / f"{name}.png", folder / f"{name}.svg"]
            figure.savefig(paths[-2], dpi=150)
            figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def terms(report: Report) -> Figure:
    """Stacked terms of (5) in the three readings, with the measured risk and the trivial one as lines."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for row, bound in enumerate(reversed(report.bounds)):
        ends = {1: 0.0, -1: 0.0}
        for term in bound.terms:
            value = term.estimate.value
            sign = 1 if value >= 0 else -1
            label = term.name if term.name not in labelled else None
            labelled.add(term.name)
            axes.barh(
                row,
                value,
                left=ends[sign],
                color=TERM_COLOURS[term.name],
                edgecolor="white",
                linewidth=0.6,
                label=label,
                height=0.55,
            )
            ends[sign] += value
        axes.plot([bound.value] * 2, [row - 0.38, row + 0.38], color=BLACK, linewidth=2)
        state = "vacuous" if bound.vacuous else "not vacuous"
        axes.text(ends[1], row, f"  total {bound.value:.2f}\n  ({state})", va="center", fontsize=8)
    axes.axvline(report.measured_risk, color=BLACK, linestyle=":", label=f"measured risk {report.measured_risk:.2f}")
    axes.axvline(
        report.trivial_risk,
        color="#777777",
        linestyle="--",
        label=f"knowing nothing {report.trivial_risk:.2f}",
    )
    axes.set_yticks(range(len(report.bounds)), [bound.reading for bound in reversed(report.bounds)])
    axes.set_ylim(-0.5, len(report.bounds) - 0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.16 * (right - left))
    axes.set_xlabel(
        f"cross-entropy (nats), mean over {len(report.tasks)} tasks, {report.settings.held_out} held-out examples each"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axes.set_title(f"Terms of bound (5): {report.artifact['method']} on {report.artifact['suite']}", loc="left")
    return figure


def sweep(report: Report) -> Figure:
    """Risk, bounds and transfer error along θ_0 + s(θ_m - θ_0)."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    distance = [p.distance for p in report.sweep]
    for reading in READINGS:
        colour, marker, line = READING_STYLES[reading]
        axes.plot(
            distance,
            [p.bounds[reading] for p in report.sweep],
            color=colour,
            marker=marker,
            linestyle=line,
            label=f"bound, {reading}",
        )
    risk = [p.risk.value for p in report.sweep]
    spread = [2 * p.risk.stderr for p in report.sweep]
    axes.errorbar(
        distance,
        risk,
        yerr=spread,
        color=BLACK,
        marker="D",
        markersize=4,
        capsize=2,
        label="measured risk (± 2 s.e.)",
    )
    axes.plot(
        distance,
        [p.linear_risk.value for p in report.sweep],
        color=SKY,
        linestyle=":",
        marker=".",
        label="risk of the linearised network",
    )
    transfer = [p.transfer.value for p in report.sweep]
    axes.plot(distance, transfer, color=GREEN, marker="x", linestyle="-", label="transfer error ε⁺")
    axes.axhline(report.trivial_risk, color="#777777", linestyle="--", linewidth=1)
    axes.text(
        distance[-1],
        report.trivial_risk,
        "knowing nothing ",
        ha="right",
        va="bottom",
        color="#555555",
        fontsize=8,
    )
    positive = [v for p in report.sweep for v in (*p.bounds.values(), p.risk.value) if v > 0]
    if max(positive) > 30 * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5 * min(positive))
    axes.axvline(report.distance, color=PURPLE, linestyle="--", linewidth=1, label="the merge, s = 1")
    if report.ntk_radius is not None:
        axes.axvspan(
            0,
            report.ntk_radius,
            color=SKY,
            alpha=0.18,
            label=f"residual < 0.1 (NTK radius {report.ntk_radius:.2f})",
        )
    axes.set_xlabel("distance ‖θ(s) − θ_0‖,  θ(s) = θ_0 + s(θ_m − θ_0), s from 0 to 2")
    axes.set_ylabel(f"cross-entropy (nats), n = {report.settings.held_out} per task")
    axes.set_title("Tightness against distance from the pretrained weights", loc="left")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def cross_risk(report: Report) -> Figure:
    """Heat map of the cross-risk R_ij of the linearised posteriors."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    risk = report.anchors["linearised"].cross.risk.numpy()
    image = axes.imshow(risk, cmap="cividis")
    names = [row.name for row in report.tasks]
    axes.set_xticks(range(len(names)), [f"Q of {name}" for name in names], rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, row in enumerate(risk):
        for j, value in enumerate(row):
            dark = value < (risk.min() + risk.max()) / 2
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="R_ij = L_i(Q_j): cross-entropy (nats), linearised", shrink=0.8)
    axes.set_title(
        f"Risk on each task (row) of each expert's posterior (column), n = {report.settings.kernel} per task",
        loc="left",
        fontsize=9,
    )
    return figure


def ladder(report: Report) -> Figure:
    """Rungs of (8) per task: what each inequality costs."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    styles: Mapping[str, tuple[str, str]] = {
        "disagreement": (BLACK, "x"),
        "total variation": (BLUE, "o"),
        "Pinsker": (ORANGE, "s"),
        "Bretagnolle-Huber": (GREEN, "^"),
    }
    all_rungs: Mapping[str, Any] = {r.name: r for r in (*report.ladder.rungs, report.ladder.disagreement)}
    names = [*[row.name for row in report.tasks], "all tasks"]
    for shift, (name, (colour, marker)) in enumerate(styles.items()):
        rung = all_rungs[name]
        values = [*rung.per_task, rung.total]
        positions = [k + 0.12 * (shift - 1.5) for k in range(len(values))]
        axes.errorbar(
            positions,
            [v.value for v in values],
            yerr=[2 * v.stderr for v in values],
            color=colour,
            marker=marker,
            linestyle="",
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylim(0, None)
    axes.set_ylabel("added 0-1 risk, at most (± 2 s.e.)")
    tests = sorted({row.test_examples for row in report.tasks})
    axes.set_title(
        f"Ladder (8): merged model against its teachers, n = {tests[0]} to {tests[-1]} test images per task",
        loc="left",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
