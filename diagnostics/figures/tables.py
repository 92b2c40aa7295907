"""Figures of the bound's parts: stacked terms, cross-risk, flatness, kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diagnostics.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    TERM_STYLES,
    VERMILION,
    legend_below,
    new_figure,
)
from diagnostics.report import MergeReport, Report


def terms(report: Report, merge: MergeReport) -> Figure:
    """Stacked terms of the three readings, with the measured risk and that of knowing nothing as lines."""
    assert merge.bound
    figure = new_figure(3.6)
    axes = figure.subplots()
    readings = list(reversed(merge.bound.readings))
    labelled: set[str] = set()
    for row, reading in enumerate(readings):
        ends = {1: 0.0, -1: 0.0}
        for term in reading.terms:
            value = term.estimate.value
            sign = 1 if value >= 0 else -1
            colour, hatch = TERM_STYLES[term.name]
            axes.barh(
                row, value, left=ends[sign], height=0.55, color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.5,
                label=None if term.name in labelled else term.name,
            )  # fmt: skip
            labelled.add(term.name)
            ends[sign] += value
        axes.plot([reading.value] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
        state = "vacuous" if reading.vacuous else "not vacuous"
        axes.text(ends[1], row, f"  {reading.value:.2f}\n  {state}", va="center", fontsize=8)
    if merge.accuracy:
        risk = merge.accuracy.risk.value
        axes.axvline(risk, color=INK, linestyle=":", linewidth=1.3, label=f"measured risk {risk:.2f}")
    trivial = merge.bound.trivial_risk
    axes.axvline(trivial, color=FAINT, linestyle="--", linewidth=1.3, label=f"knowing nothing {trivial:.2f}")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(readings)), [r.reading for r in readings])
    axes.set_ylim(-0.5, len(readings) - 0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.17 * (right - left))
    n = report.settings.held_out
    axes.set_xlabel(f"cross-entropy (nats), mean over {len(report.tasks)} tasks, n = {n} held-out examples each")
    legend_below(figure, axes, 3)
    return figure


def cross_risk(report: Report, merge: MergeReport) -> Figure:
    """Heat map of R_ij, the risk on task i of expert j's posterior, in f^lin."""
    assert merge.heterogeneity
    table = merge.heterogeneity.readings["linearised"]
    risk, count = np.array(table.risk), len(report.tasks)
    figure = new_figure(1.6 + 0.42 * count)
    axes = figure.subplots()
    image = axes.pcolormesh(np.arange(count), np.arange(count), risk, cmap="cividis", shading="nearest")
    axes.set_xticks(range(count), report.tasks, rotation=40, ha="right")
    axes.set_yticks(range(count), report.tasks)
    axes.invert_yaxis()
    axes.set_xlabel("posterior of expert j")
    axes.set_ylabel("task i")
    middle = (risk.min() + risk.max()) / 2
    for i, row in enumerate(risk):
        for j, value in enumerate(row):
            colour = "#ffffff" if value < middle else "#000000"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.spines[:].set_visible(False)
    n = min(table.examples)
    bar = figure.colorbar(image, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
    bar.set_label(f"R_ij: cross-entropy (nats), n = {n} per task")
    return figure


def flatness(report: Report, merge: MergeReport) -> Figure:
    """Gradient norm per block; sharpness in weights and coefficients and top Hessian eigenvalue per task."""
    assert merge.flatness
    part = merge.flatness
    figure = new_figure(5.6)
    top, middle, bottom = figure.subplots(3, 1, gridspec_kw={"height_ratios": [1, 1.1, 1.1]})
    names = list(part.gradient_per_block)
    top.barh(range(len(names)), list(part.gradient_per_block.values()), color=BLUE, height=0.6)
    top.set_yticks(range(len(names)), [_short(n) for n in names])
    top.invert_yaxis()
    top.set_xlabel(f"‖∇_b L̂‖ (nats per unit of weight), n = {part.examples} per task")
    at = np.arange(len(report.tasks))
    middle.plot(at - 0.08, part.sharpness_weights, "o", color=VERMILION, label="in weights")
    middle.plot(at + 0.08, part.sharpness_coefficients, "s", color=GREEN, label="in coefficients")
    middle.axhline(0, color=FAINT, linewidth=0.6)
    middle.set_ylabel(f"increase at ρ = {part.rho:g}\n(nats), n = {part.examples}")
    middle.legend(fontsize=8, frameon=False)
    bottom.plot(at, part.top_eigenvalues, "D", color=ORANGE)
    bottom.set_yscale("log" if min(part.top_eigenvalues) > 0 else "linear")
    bottom.set_ylabel(f"λ_max of ∇²L̂_t\n(nats/weight²), n = {part.hessian_examples}")
    _task_axis(middle, report, shown=False)
    _task_axis(bottom, report, shown=True)
    return figure


def kernel(report: Report, merge: MergeReport) -> Figure:
    """Trace of the kernel per task and block, spectra of its Gram matrices, drift from θ_0 to θ_m per task."""
    assert merge.entk
    part = merge.entk
    figure = new_figure(6.4)
    top, middle, bottom = figure.subplots(3, 1, gridspec_kw={"height_ratios": [1.1, 1.1, 1]})
    trace = np.array(part.trace).T
    left = np.zeros(len(report.tasks))
    colours = ["#00204c", "#39486b", "#6c6e72", "#9d9677", "#d2c060", "#ffe945"]
    for block, values in enumerate(trace):
        colour = colours[round(block * (len(colours) - 1) / max(1, len(trace) - 1))]
        label = _short(part.blocks[block])
        top.bar(range(len(left)), values, bottom=left, color=colour, edgecolor=FAINT, linewidth=0.4, label=label)
        left = left + values
    top.set_ylabel(f"mean tr K_b at θ_0\n(scores²/weight²), n = {part.trace_examples}")
    top.legend(fontsize=7, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    markers, dashes = "os^DvP*X", ["-", "--", "-.", ":"]
    for index, (name, task) in enumerate(zip(report.tasks, part.tasks, strict=True)):
        values = [v for v in task.eigenvalues if v > 0]
        middle.plot(
            range(1, len(values) + 1), values, color=(BLUE, ORANGE, GREEN, VERMILION)[index % 4], linewidth=1,
            linestyle=dashes[(index // 4) % 4], marker=markers[index % 8], markersize=3, label=name,
        )  # fmt: skip
    middle.set_yscale("log")
    middle.set_xlabel("index of the eigenvalue")
    middle.set_ylabel(f"eigenvalue of the Gram\nmatrix, n = {part.gram_examples}")
    middle.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    at = np.arange(len(report.tasks))
    bottom.plot(at - 0.08, [t.rotation for t in part.tasks], "o", color=VERMILION, label="rotation S")
    bottom.plot(at + 0.08, [t.relative_change for t in part.tasks], "s", color=BLUE, label="‖K_m − K_0‖/‖K_0‖")
    bottom.set_ylim(0, None)
    bottom.set_ylabel(f"drift θ_0 → θ_m\n(ratio), n = {part.gram_examples}")
    bottom.legend(fontsize=8, frameon=False)
    _task_axis(top, report, shown=False)
    _task_axis(bottom, report, shown=True)
    return figure


def _task_axis(axes: Any, report: Report, *, shown: bool) -> None:
    axes.set_xticks(range(len(report.tasks)), report.tasks if shown else [], rotation=30, ha="right")


def _short(block: str) -> str:
    return block.replace("transformer.resblocks.", "layer ")
