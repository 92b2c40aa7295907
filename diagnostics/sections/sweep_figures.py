"""Figures of the distance sweep: what moves along a path, and the merge's path beside the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diagnostics.figures.svg import FAINT, INK, PAPER
from diagnostics.sections.paths import SweepPath, SweepSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_path(section: SweepSection, path: SweepPath, trivial: float | None) -> Figure:
    """Draw risk (linear scale, its minimum marked), ε⁺, residual, drift and sharpness where measured, and the slack.

    The slack is drawn for the first path alone: its anchors are those of that path's s.
    """
    from diagnostics.figures import style

    first = path == section.paths[0] and section.policies
    local = [name for name in ("rotation", "sharpness") if getattr(path.points[0], name) is not None]
    heights = [2.2, 0.9, 0.9, *[1] * len(local), *[1.1] * bool(first)]
    figure = style.new_figure(1.25 * sum(heights))
    panels = list(figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}))
    distance = [p.distance for p in path.points]
    _draw_risks(panels[0], section, path, trivial)
    panels[1].plot(distance, [p.transfer.value for p in path.points], color=style.GREEN, marker="x")
    panels[1].set_ylabel("transfer error\nε⁺ (nats)")
    panels[2].plot(distance, [p.residual for p in path.points], color=style.PURPLE, marker="o", markersize=3.5)
    panels[2].axhline(path.tolerance, color=FAINT, linestyle="--", linewidth=1)
    panels[2].set_ylabel("residual\n(ratio)")
    for panel in panels[1:3]:
        panel.set_ylim(0, None)
    for name, panel in zip(local, panels[3:], strict=False):
        (_draw_drift if name == "rotation" else _draw_sharpness)(panel, section, path)
    if first:
        _draw_policies(panels[-1], section, path)
    for panel in panels:
        panel.axvline(path.norm, color=INK, linestyle=":", linewidth=1)
        if path.ntk_radius is not None:
            panel.axvspan(0, path.ntk_radius, color=style.SKY, alpha=0.2, linewidth=0)
    panels[-1].set_xlabel("distance ‖θ(s) − θ_0‖ (weights), θ(s) = θ_0 + s·d; residual ‖f − f^lin‖/‖f − f_0‖")
    radius = "never" if path.ntk_radius is None else f"{path.ntk_radius:.2f}"
    title = f"{style.named(path.name)}: dotted line s = 1; shaded: NTK radius {radius} (residual {path.tolerance:g})"
    panels[0].set_title(title, loc="left")
    return figure


def _draw_risks(axes: Any, section: SweepSection, path: SweepPath, trivial: float | None) -> None:
    from diagnostics.figures import style

    distance = [p.distance for p in path.points]
    risks = [p.risk.value for p in path.points]
    axes.errorbar(
        distance, risks, yerr=[2 * p.risk.stderr for p in path.points], color=INK, marker="D", markersize=3.5,
        capsize=2, label="measured risk (± 2 s.e.)",
    )  # fmt: skip
    linear = [p.linear_risk.value for p in path.points]
    axes.plot(distance, linear, color=style.BLUE, linestyle="-.", marker="^", markersize=4, label="risk of f^lin")
    for values, colour, other in ((risks, INK, linear), (linear, style.BLUE, risks)):
        least = min(range(len(values)), key=values.__getitem__)
        above = values[least] > other[least] or (values is risks and values[least] == other[least])
        axes.plot(
            distance[least], values[least], marker="o", markersize=11, markerfacecolor="none", color=colour,
            linestyle="none",
        )  # fmt: skip
        axes.annotate(
            f"least {values[least]:.3f} at s = {path.points[least].s:g}", (distance[least], values[least]),
            xytext=(0, 10 if above else -16), textcoords="offset points", ha="center", fontsize=8, color=colour,
        )  # fmt: skip
    if trivial is not None and trivial < 1.5 * max(risks + linear):
        axes.axhline(trivial, color=FAINT, linestyle="--", linewidth=1, label=f"knowing nothing {trivial:.2f}")
    axes.margins(y=0.2)
    axes.set_ylabel(f"cross-entropy (nats)\nn = {section.examples} per task")
    axes.legend(fontsize=8, facecolor=PAPER, edgecolor="none", framealpha=1, loc="best")


def _draw_policies(axes: Any, section: SweepSection, path: SweepPath) -> None:
    from diagnostics.figures.labels import series

    distance = [p.distance for p in path.points]
    values = [e.value for policy in section.policies for e in policy.slack]
    names = {"experts": "experts (c = 1)", "path": "following the path (c = s)", "best": "best c of each expert"}
    for index, policy in enumerate(section.policies):
        axes.plot(
            distance, [e.value for e in policy.slack], markersize=4, **series(index), label=names[policy.name]
        )  # fmt: skip
    if min(values) > 0:
        axes.set_yscale("log")
    axes.set_ylabel("slack of the\nanchors (nats)")
    axes.legend(fontsize=8, frameon=False, loc="center right")


def _draw_drift(axes: Any, section: SweepSection, path: SweepPath) -> None:
    from diagnostics.figures import style

    distance = [p.distance for p in path.points]
    rotations = [p.rotation for p in path.points]
    axes.plot(distance, rotations, color=style.VERMILION, marker="o", markersize=3.5, label="rotation S")
    changes = [p.relative_change for p in path.points]
    axes.plot(
        distance, changes, color=style.BLUE, marker="s", markersize=3.5, linestyle="--", label="‖K_s − K_0‖/‖K_0‖"
    )
    axes.set_ylim(0, None)
    axes.set_ylabel(f"drift of eNTK\n(ratio), n = {section.gram_examples}")
    axes.legend(fontsize=7, frameon=False)


def _draw_sharpness(axes: Any, section: SweepSection, path: SweepPath) -> None:
    from diagnostics.figures import style

    values = [p.sharpness for p in path.points]
    axes.plot([p.distance for p in path.points], values, color=style.ORANGE, marker="s", markersize=3.5)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.set_ylabel(f"sharpness (nats)\nρ = {section.rho:g}, n = {section.examples}")


def draw_controls(section: SweepSection) -> Figure:
    """Draw measured risk (linear scale) and residual over distance: the merge, experts, random directions, by name."""
    from diagnostics.figures import style
    from diagnostics.figures.labels import label_ends

    figure = style.new_figure(5.4)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.7, 1]})
    ends: tuple[list[Any], list[Any]] = ([], [])
    for path, look in zip(section.paths, _looks(section.paths), strict=True):
        distance, name = [p.distance for p in path.points], style.named(path.name.removeprefix("expert "), 20)
        for panel, at, values in (
            (axes, ends[0], [p.risk.value for p in path.points]),
            (below, ends[1], [p.residual for p in path.points]),
        ):
            panel.plot(distance, values, markersize=4, **look)
            at.append((distance[-1], values[-1], name, INK))
    axes.set_ylabel(f"measured risk (nats)\nn = {section.examples} per task")
    below.axhline(section.paths[0].tolerance, color=FAINT, linestyle="--", linewidth=1)
    below.set_ylabel("residual (ratio)")
    below.set_ylim(0, None)
    below.set_xlabel("distance ‖θ(s) − θ_0‖ (Euclidean, weights); dashed: tolerance of the residual")
    axes.set_title("thick: the merge; thin with own marks: experts; dotted: random direction", loc="left")
    label_ends(axes, ends[0])
    label_ends(below, ends[1], 6.5)
    return figure


def _looks(paths: Sequence[SweepPath]) -> list[dict[str, Any]]:
    """Return how each path is drawn: experts by marker and colour, the others by their own."""
    from diagnostics.figures.labels import series

    fixed = {
        "merge": {"color": INK, "marker": "o", "linestyle": "-", "linewidth": 2.4, "zorder": 3},
        "random": {"color": FAINT, "marker": "+", "linestyle": ":", "linewidth": 1.6},
    }
    experts = 0
    looks: list[dict[str, Any]] = []
    for path in paths:
        experts += path.kind == "expert"
        looks.append(fixed.get(path.kind, {**series(experts), "linestyle": "--", "linewidth": 0.9}))
    return looks
