"""How much of the experts' training evidence survives the price of (5), at anchors between θ_0 and the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bounds.types import Estimate, weighted_sum
from diagnostics.figures.svg import FAINT, INK, PAPER
from diagnostics.settings import ANCHORS
from diagnostics.terms.anchors import Anchor, best_of
from diagnostics.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ExpertAnchor:
    """One expert at m = θ_0 + cτ: the slack s_j of its own bound (17), the risk of f^lin at m, KL (nats), η.

    ``examples`` is the |S_j| at which the slack would be 1 nat, the rest of its statistics as they are; null: at none.
    """

    slack: Estimate
    risk: Estimate
    kl: float
    eta: float
    examples: int | None


@dataclass(frozen=True, kw_only=True)
class AnchorRow:
    """All anchors at one c: Σβ_j s_j, Σβ_j L_j^lin(m_j), and the corrected total that (5) has with these anchors."""

    c: float
    slack: Estimate
    risk: Estimate
    total: float
    experts: tuple[ExpertAnchor, ...]


@dataclass(frozen=True)
class BestExpert:
    """The expert of least slack by one half of the held-out examples: its slack there, and on the other half."""

    expert: int
    chosen: Estimate
    reported: Estimate


@dataclass(frozen=True)
class BestAnchors:
    """The c of least slack of every expert by one half of the held-out examples; Σβ_j s_j on the other half."""

    c: tuple[float, ...]
    slack: Estimate


@dataclass(frozen=True, kw_only=True)
class Slack:
    """The slack of the experts' own bounds against the anchor, and what choosing could save."""

    rows: tuple[AnchorRow, ...]
    best_expert: BestExpert
    best_anchors: BestAnchors


def compute(workspace: Workspace, linear_risk: float, transfer: float) -> Slack:
    """Measure the slack on the grid ``ANCHORS``; ``linear_risk`` and ``transfer`` are those of f^lin and ε⁺ at θ_m."""
    anchors, beta = workspace.anchors(ANCHORS), workspace.beta
    reported = workspace.reported
    rows = []
    for c, row in zip(ANCHORS, anchors, strict=True):
        experts = tuple(_expert(anchor, reported) for anchor in row)
        slack = weighted_sum([e.slack for e in experts], beta)
        risk = weighted_sum([e.risk for e in experts], beta)
        rows.append(AnchorRow(c=c, slack=slack, risk=risk, total=linear_risk + slack.value + transfer, experts=experts))
    vertex = best_of(anchors[ANCHORS.index(1.0)])
    return Slack(
        rows=tuple(rows),
        best_expert=BestExpert(vertex.place, vertex.chosen, vertex.reported),
        best_anchors=best_anchors(anchors, beta),
    )


def _expert(anchor: Anchor, reported: slice) -> ExpertAnchor:
    risk = Estimate.of_mean(anchor.point[reported])
    return ExpertAnchor(
        slack=anchor.slack(reported), risk=risk, kl=anchor.kl, eta=anchor.eta, examples=anchor.examples
    )  # fmt: skip


def best_anchors(anchors: Sequence[Sequence[Anchor]], beta: Sequence[float]) -> BestAnchors:
    """Choose c for every expert on one half of its held-out examples; report on the other.

    Args:
        anchors: per c of ``ANCHORS`` one anchor per expert.
        beta: weights of the experts [T].
    """
    choices = [best_of(column) for column in zip(*anchors, strict=True)]
    slack = weighted_sum([choice.reported for choice in choices], beta)
    return BestAnchors(tuple(ANCHORS[choice.place] for choice in choices), slack)


def draw_totals(slack: Slack, linear_risk: float, transfer: float, lines: Mapping[str, float]) -> Figure:
    """Draw the three parts of (5) at every choice of anchors: the risk of f^lin, the slack, ε⁺.

    Args:
        slack: against the anchor.
        linear_risk: of f^lin at θ_m.
        transfer: ε⁺.
        lines: risks to compare with, by what they are called.
    """
    from diagnostics.figures import style

    figure = style.new_figure(0.42 * len(slack.rows) + 1.6)
    axes = figure.subplots()
    parts = (
        ("risk of f^lin", style.BLUE, ""),
        ("slack of the experts' own bounds", style.ORANGE, "///"),
        ("transfer error ε⁺", "#8c8c8c", "|||"),
    )
    for place, row in enumerate(slack.rows):
        left = 0.0
        for (name, colour, hatch), value in zip(parts, (linear_risk, row.slack.value, transfer), strict=True):
            axes.barh(
                place, value, left=left, height=0.6, color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.5,
                label=None if place else name,
            )  # fmt: skip
            left += value
        text = f"  {linear_risk:.2f} + {row.slack.value:.2f} + {transfer:.2f} = {row.total:.2f}"
        axes.text(left, place, text, va="center", fontsize=8)
    for (name, value), line in zip(lines.items(), (":", "--"), strict=False):
        axes.axvline(value, color=INK, linestyle=line, linewidth=1.2, label=f"{name} {value:.2f}")
    ends = {0.0: " (pretrained)", 1.0: " (experts)"}
    axes.set_yticks(range(len(slack.rows)), [f"c = {row.c:g}{ends.get(row.c, '')}" for row in slack.rows])
    axes.set_ylabel("anchors θ_0 + c·τ_j")
    axes.set_xlim(0, 1.55 * max(row.total for row in slack.rows))
    axes.set_xlabel("corrected total of (5) for this one merge, cross-entropy (nats)")
    style.legend_below(figure, axes, 2)
    return figure


def draw(slack: Slack, tasks: Sequence[str]) -> Figure:
    """Slack against c, per expert and in the mean, on a log scale; below, the risk of f^lin at the anchors."""
    from diagnostics.figures import style
    from diagnostics.figures.labels import label_ends, series

    figure = style.new_figure(5.4)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.7, 1]})
    scales, ends = [row.c for row in slack.rows], []
    for j, name in enumerate(tasks):
        line = series(j)
        slacks = [row.experts[j].slack.value for row in slack.rows]
        above.plot(scales, slacks, linewidth=1, markersize=4, **line)
        below.plot(scales, [row.experts[j].risk.value for row in slack.rows], linewidth=1, markersize=3, **line)
        ends.append((scales[-1], slacks[-1], style.named(name, 22), INK))
    mean = [row.slack.value for row in slack.rows]
    above.plot(scales, mean, color=INK, linewidth=2.4)
    below.plot(scales, [row.risk.value for row in slack.rows], color=INK, linewidth=2.4)
    ends.append((scales[-1], mean[-1], "Σβ_j s_j (thick)", INK))
    if min(e.slack.value for row in slack.rows for e in row.experts) > 0:
        above.set_yscale("log")
    above.axhline(1, color=FAINT, linestyle="--", linewidth=1)
    above.text(scales[0], 1, "1 nat", va="bottom", fontsize=8, color=INK)
    above.set_xlim(scales[0] - 0.02, scales[-1] + 0.02)
    above.set_ylabel("slack of the expert's\nown bound (nats)")
    below.set_ylabel("risk of f^lin at\nthe anchor (nats)")
    below.set_ylim(0, None)
    below.set_xlabel("c: the anchor is θ_0 + c·τ_j (0: pretrained, 1: the expert)")
    below.set_xticks(scales)
    label_ends(above, ends)
    return figure
