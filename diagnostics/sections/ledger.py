"""The ledger of the real network (18): experts' own risk + heterogeneity + effect of merging = risk, each certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from torch import Tensor

from bounds.certificates import TaskLosses, ledger
from bounds.scores import largest_smoothed_loss, smoothed_cross_entropy, zero_one_loss
from bounds.types import take
from diagnostics.figures.svg import FAINT, INK
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.certified import validation_use
from diagnostics.sections.evidence import Evidence, gathered
from diagnostics.sections.token_certificates import NATS, WRONG, Models, Quantity, token_evidence
from diagnostics.settings import FLOOR
from diagnostics.subject import Subject
from diagnostics.terms.tokens import Sums
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.task import score_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LedgerPart:
    """One part: the observed mean, and its upper limit with its sign."""

    name: str
    observed: float
    value: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class LedgerTable:
    """The parts of one loss, "nats" (smoothed cross-entropy) or "error" (0-1), and their sum.

    The three parts hold together at δ, a third each; the total is a statement of its own at δ. ``test_risk`` is the
    total on the test split.
    """

    unit: str
    parts: tuple[LedgerPart, ...]
    total: LedgerPart
    test_risk: float


@dataclass(frozen=True, kw_only=True)
class LedgerSection:
    """Where the risk of a merge comes from, in the real network; ``missing`` says why there is none."""

    n: int
    floor: float
    tables: tuple[LedgerTable, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


NAMES = ("experts' own risk", "heterogeneity", "effect of merging the weights")
Loss = Callable[[Tensor, Tensor], Tensor]


LOSSES: Mapping[str, tuple[Loss, Callable[[int], float]]] = {
    "nats": (lambda s, y: smoothed_cross_entropy(s, y, FLOOR), lambda classes: largest_smoothed_loss(classes, FLOOR)),
    "error": (zero_one_loss, lambda _: 1.0),
}
"""Unit -> loss and its largest value with C classes."""


def compute(workspace: Workspace, subject: Subject) -> LedgerSection:
    """Certify the parts. Status: certified; observed means are exact for the split."""
    workspace.check_labels("validation", "the ledger")
    workspace.check_labels("test", "the ledger, which is shown beside the test risk")
    looks, use = validation_use(subject)
    n = sum(fact["sizes"]["validation"] for fact in workspace.facts())
    if not looks:
        return LedgerSection(n=n, floor=FLOOR, tables=(), missing={"(18)": use})
    models, delta = looks * workspace.models_looked_at, workspace.settings.delta
    measure = _of_tokens if workspace.scored == "position" else _of_examples
    tables = []
    for unit, found in measure(workspace, subject).items():
        book = ledger(found.validation, workspace.alpha, workspace.beta, delta, found.pilot, models)
        rows = zip((*NAMES, "risk"), (book.own, book.heterogeneity, book.merging, book.total), strict=True)
        parts = tuple(LedgerPart(name, b.terms[0].estimate.value, b.value, b.delta) for name, b in rows)
        test = sum(a * risk for a, risk in zip(workspace.alpha, found.test, strict=True))
        tables.append(LedgerTable(unit=unit, parts=parts[:-1], total=parts[-1], test_risk=test))
    return LedgerSection(n=n, floor=FLOOR, tables=tuple(tables))


@dataclass(frozen=True)
class Measured:
    """Losses of one unit per task: on validation, on the pilot (None: there is none), the merge's mean on test."""

    validation: Sequence[TaskLosses]
    pilot: Sequence[TaskLosses] | None
    test: Sequence[float]


def _of_examples(workspace: Workspace, subject: Subject) -> Mapping[str, Measured]:
    """Return unit -> losses, where an example has one row of scores."""
    evidence = gathered(workspace, subject)
    validation, pilot = workspace.experts_on_validation(), _experts_on_pilot(workspace, subject, evidence)
    merged = [[s["merged"] for s in group] for group in (evidence.labelled, evidence.pilot or ())]
    there = list(zip(evidence.test, evidence.test_labels, strict=True))
    return {
        unit: Measured(
            _losses(merged[0], validation, evidence.labels, loss, largest),
            None if pilot is None else _losses(merged[1], pilot, evidence.pilot_labels, loss, largest),
            [float(loss(s["merged"], y).mean()) for s, y in there],
        )
        for unit, (loss, largest) in LOSSES.items()
    }


def _of_tokens(workspace: Workspace, subject: Subject) -> Mapping[str, Measured]:
    """Return unit -> losses, where every position has scores: of each example the mean over its tokens (22)."""
    evidence, experts = token_evidence(workspace, subject), workspace.experts_tokens()
    own = [str(j) for j in range(len(workspace.names))]
    pilot = None if evidence.pilot is None else [[models[j] for j in own] for models in evidence.pilot]
    return {
        quantity.unit: Measured(
            _token_losses(quantity, evidence.validation, experts, evidence.classes),
            None if pilot is None else _token_losses(quantity, evidence.pilot or (), pilot, evidence.classes),
            [float(sample.values.mean()) for sample in evidence.samples(quantity, evidence.test)],
        )
        for quantity in (NATS, WRONG)
    }


def _token_losses(
    quantity: Quantity, merged: Sequence[Models], experts: Sequence[Sequence[Sums]], classes: Sequence[int]
) -> list[TaskLosses]:
    def one(models: Models, sums: Sequence[Sums], count: int) -> TaskLosses:
        mine, others = quantity.sample(models, count), [quantity.sample({"merged": s}, count) for s in sums]
        columns = torch.stack([sample.values for sample in others], dim=1)
        return TaskLosses(merged=mine.values, experts=columns, largest=mine.upper)

    return [one(*group) for group in zip(merged, experts, classes, strict=True)]


def _losses(
    merged: Sequence[Tensor],
    experts: Sequence[Sequence[Tensor]],
    labels: Sequence[Tensor],
    loss: Loss,
    largest: Callable[[int], float],
) -> list[TaskLosses]:
    return [
        TaskLosses(merged=loss(m, y), experts=loss(torch.stack(list(e)), y).T, largest=largest(m.shape[-1]))
        for m, e, y in zip(merged, experts, labels, strict=True)
    ]


def _experts_on_pilot(workspace: Workspace, subject: Subject, evidence: Evidence) -> list[list[Tensor]] | None:
    """Scores of every expert on the pilot's inputs, per task."""
    if evidence.pilot is None:
        return None

    def one(index: int) -> Mapping[str, Tensor]:
        task, vectors = workspace.suite.tasks[index], workspace.vectors
        inputs = take(task.calibration.inputs, evidence.pilot_positions[index].to(workspace.device))
        return {
            str(j): score_task(task, vectors.expert(j), inputs, "calibration", "expert").double().cpu()
            for j in range(len(vectors))
            if j != index
        }

    where = [p.tolist() for p in evidence.pilot_positions]
    pieces = workspace.pieces(
        Pieces("experts on pilot", where, one, len(workspace.names)), f"{subject.label}: every expert, pilot inputs"
    )
    own = [{str(index): scores["expert"]} for index, scores in enumerate(evidence.pilot)]
    whole = [{**piece, **mine} for piece, mine in zip(pieces, own, strict=True)]
    return [[scores[str(j)] for j in range(len(workspace.names))] for scores in whole]


def _shown(value: float, unit: str, *, signed: bool) -> str:
    text = f"{100 * value:+.1f}" if unit == "error" else f"{value:+.3f}"
    return (text if signed else text.removeprefix("+")).replace("-", "−")


def table(view: View, part: LedgerSection) -> Table:
    """Return the parts and their sum, in nats and in per cent."""
    title = f"{view.label}: ledger (18) of the real network, n = {part.n} validation examples"
    table = Table(title=plain(title, "table.title"))
    table.add_column("part")
    for column in ("unit", "observed", "certified", "test", "δ"):
        table.add_column(column, justify="right")
    for each in part.tables:
        table.add_section()
        for row in (*each.parts, each.total):
            values = [_shown(v, each.unit, signed=row.name in NAMES[1:]) for v in (row.observed, row.value)]
            test = _shown(each.test_risk, each.unit, signed=False) if row is each.total else ""
            table.add_row(row.name, "%" if each.unit == "error" else "nats", *values, test, f"{row.delta:.3g}")
    table.caption = "the three parts hold together; the risk is a statement of its own"
    return table


def figure(view: View, part: LedgerSection) -> Figure:
    """Draw the parts as steps from nothing to the risk; whiskers reach up to what is certified."""
    from diagnostics.figures import style

    figure = style.new_figure(2.6)
    for axes, each in zip(figure.subplots(1, max(1, len(part.tables)), squeeze=False)[0], part.tables, strict=False):
        scale, height = (100.0 if each.unit == "error" else 1.0), 0.0
        colours = (style.BLUE, style.ORANGE, style.GREEN, INK)
        for at, (row, colour) in enumerate(zip((*each.parts, each.total), colours, strict=True)):
            base = 0.0 if row is each.total else height
            axes.bar(at, scale * row.observed, bottom=scale * base, color=colour, width=0.6)
            top = scale * (base + row.observed)
            axes.errorbar(at, top, yerr=[[0.0], [scale * (row.value - row.observed)]], color=FAINT, capsize=3)
            height = base + row.observed
        axes.axhline(0.0, color=FAINT, linewidth=0.6)
        axes.set_xticks(range(4), ["own", "hetero-\ngeneity", "merging", "risk"])
        axes.set_ylabel("0-1 error (%)" if each.unit == "error" else f"smoothed CE (nats), ε = {part.floor:g}")
    return figure


SECTION = Section(
    kind=LedgerSection,
    compute=compute,
    title="Ledger: where the risk comes from",
    link="ledger",
    how=("18", "14", "19"),
    table=table,
    figures={"ledger": Drawn(figure)},
    missing=lambda part: part.missing,
)
