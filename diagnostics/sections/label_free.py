"""What is known of a merge without any label: how far it is from its teachers, and what they say of its labels.

A section of its own beside the ladder (8): that one states a theorem about the teachers' error, which needs labels to
mean anything; here is what inputs and experts say alone, and an estimate of the merge's error that labelled examples,
where there are any, correct. Transfer error, residual and distance describe a merge; they do not predict its error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import Tensor

from bounds.distillation import error_by_teacher, ladder
from bounds.prediction_powered import prediction_powered
from bounds.scores import zero_one_loss
from bounds.types import Estimate, Sample, weighted_sum
from diagnostics.figures.numbers import percent_estimate
from diagnostics.figures.svg import INK
from diagnostics.sections.accuracy import Accuracy
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.terms.linear import subsample
from diagnostics.terms.merge import Transfer, transfer
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class LabelFreeRow:
    """One task, or the α-weighted mean of all.

    ``total_variation`` (0..1), ``divergence`` KL(teacher ‖ merge) (nats) and ``disagreement`` (rate) are means over the
    test inputs. ``expected_error`` is E[1 - p_T(merge's label)] on them: the merge's error if the expert's
    probabilities are right. Where validation labels are read, ``rectifier`` is the error observed there minus the
    estimate there, ``rectified`` their sum with the estimate (prediction-powered inference), ``validation_error`` the
    error observed there. ``test_error`` is the error on the test split, where its labels are read.
    """

    total_variation: Estimate
    divergence: Estimate
    disagreement: Estimate
    expected_error: Estimate
    rectifier: Estimate | None
    rectified: Estimate | None
    validation_error: Estimate | None
    test_error: Estimate | None


@dataclass(frozen=True, kw_only=True)
class LabelFreeSection:
    """What is known without labels, per task and in ``total``, and what labels add where they are read.

    ``transfer`` is ε⁺ of (7) (nats), ``residual`` ‖f - f^lin‖/‖f - f_0‖, both on ``examples`` test inputs of each task,
    ``distance`` ‖θ_m - θ_0‖: descriptions of the merge. ``chosen_on_labels``: whether the merge used the validation
    labels (None: not known), whose error is then no unbiased one. ``missing`` says what could not be stated, and why.
    """

    tasks: tuple[LabelFreeRow, ...]
    total: LabelFreeRow
    transfer: Estimate
    residual: float
    distance: float
    examples: int
    chosen_on_labels: bool | None
    missing: Mapping[str, str] = field(default_factory=dict)


def compute(workspace: Workspace, subject: Subject) -> LabelFreeSection:
    """Compare merge and teachers on the test inputs; read labels only to correct, and where there are some."""
    teachers, merged, alpha = workspace.teachers(), workspace.merged(subject), workspace.alpha
    rungs = ladder([t["expert"] for t in teachers], [m["test"] for m in merged], alpha)
    distances = (rungs.total_variation, rungs.divergence, rungs.disagreement)
    rows = tuple(
        _row([rung.per_task[index] for rung in distances], teacher, scores)
        for index, (teacher, scores) in enumerate(zip(teachers, merged, strict=True))
    )
    used = subject.artifact.used
    found = _transfer(workspace, subject)
    return LabelFreeSection(
        tasks=rows,
        total=_total(rows, alpha),
        transfer=found.positive,
        residual=found.residual,
        distance=norm(workspace.displacement(subject)),
        examples=min(len(values) for values in found.values),
        chosen_on_labels=None if used is None else "validation" in used,
        missing=_missing(workspace.names, rows),
    )


def _row(distances: Sequence[Estimate], teacher: Mapping[str, Any], merged: Mapping[str, Any]) -> LabelFreeRow:
    variation, divergence, disagreement = distances
    expected = error_by_teacher(teacher["expert"], merged["test"])
    labels, powered, observed = teacher["validation_labels"], None, None
    if labels is not None:
        wrong = zero_one_loss(merged["validation"], labels)
        powered = prediction_powered(expected, error_by_teacher(teacher["validation"], merged["validation"]), wrong)
        observed = Estimate.of_mean(wrong)
    test = teacher["test_labels"]
    return LabelFreeRow(
        total_variation=variation,
        divergence=divergence,
        disagreement=disagreement,
        expected_error=Estimate.of_mean(expected, "assumed"),
        rectifier=powered and powered.rectifier,
        rectified=powered and powered.rectified,
        validation_error=observed,
        test_error=None if test is None else Estimate.of_mean(zero_one_loss(merged["test"], test)),
    )


def _total(rows: Sequence[LabelFreeRow], alpha: Sequence[float]) -> LabelFreeRow:
    """α-weighted means; None where a task has no such number."""

    def known(name: str) -> Estimate | None:
        values = [(getattr(row, name), weight) for row, weight in zip(rows, alpha, strict=True) if weight]
        return None if any(e is None for e, _ in values) else weighted_sum(*zip(*values, strict=True))

    return LabelFreeRow(
        total_variation=weighted_sum([row.total_variation for row in rows], alpha),
        divergence=weighted_sum([row.divergence for row in rows], alpha),
        disagreement=weighted_sum([row.disagreement for row in rows], alpha),
        expected_error=weighted_sum([row.expected_error for row in rows], alpha),
        rectifier=known("rectifier"),
        rectified=known("rectified"),
        validation_error=known("validation_error"),
        test_error=known("test_error"),
    )


def _transfer(workspace: Workspace, subject: Subject) -> Transfer:
    """Transfer error and residual at θ_m on the held-out inputs: J(x)(θ_m - θ_0) and scores that are there already."""
    wanted = workspace.tangents(subject.key, workspace.displacement(subject))
    along = [piece["tangents"] for piece in workspace.pieces(wanted, f"{subject.label}: linearising at θ_0")]
    settings = workspace.settings

    def few(scores: Tensor) -> Tensor:  # of the inputs that workspace.held_out draws
        inputs = subsample(Sample(scores), settings.held_out, settings.seed).inputs
        assert isinstance(inputs, Tensor)
        return inputs

    base = [few(teacher["pretrained"]) for teacher in workspace.teachers()]
    scores = [few(merged["test"]) for merged in workspace.merged(subject)]
    linear = [at_base + tangents for at_base, tangents in zip(base, along, strict=True)]
    return transfer(scores, linear, base, workspace.alpha)


def _missing(names: Sequence[str], rows: Sequence[LabelFreeRow]) -> dict[str, str]:
    without = [name for name, row in zip(names, rows, strict=True) if row.rectified is None]
    return {"rectified estimate of the error": f"no validation labels of {', '.join(without)}"} if without else {}


COLUMNS: Mapping[str, str] = {
    "disagreement": "disagreement %",
    "expected_error": "E[1 − p_T(label)] %",
    "rectifier": "rectifier %",
    "rectified": "rectified %",
    "validation_error": "validation error %",
    "test_error": "test error %",
}
"""Rates of a row and what heads them; those that no task has are left out."""


def table(view: View, part: LabelFreeSection) -> Table:
    """Return a row per task and one for all: distances to the teachers, then estimates of the error."""
    table = Table("task", title=plain(f"{view.label}: what is known without labels", "table.title"))
    shown = [name for name in COLUMNS if any(getattr(row, name) is not None for row in part.tasks)]
    for heading in ("total variation", "KL (nats)", *(COLUMNS[name] for name in shown)):
        table.add_column(heading, justify="right")

    def add(name: str, row: LabelFreeRow) -> None:
        nats = f"{row.divergence.value:.3f} ± {row.divergence.stderr:.3f}"
        variation = f"{row.total_variation.value:.3f} ± {row.total_variation.stderr:.3f}"
        table.add_row(plain(name), variation, nats, *(percent_estimate(getattr(row, column)) for column in shown))

    for name, row in zip(view.tasks, part.tasks, strict=True):
        add(name, row)
    table.add_section()
    add("all tasks", part.total)
    table.caption = plain(
        f"Descriptions of the merge, which do not predict its error: distance {part.distance:.2f}, residual "
        f"{part.residual:.3f}, ε⁺ {part.transfer.value:.3f} ± {part.transfer.stderr:.3f} nats (n = {part.examples} "
        f"per task).{' ' + CHOSEN if part.chosen_on_labels else ''}",
        "table.caption",
    )
    return table


CHOSEN = "The merge was chosen on the validation labels: its error there, and what it corrects, may be too small."


def sentence(view: View, part: LabelFreeSection) -> str:
    """Say what is known where the accuracy is not; nothing where it is."""
    if view.part(Accuracy) is not None:
        return ""
    total = part.total
    worst = max(range(len(part.tasks)), key=lambda index: part.tasks[index].disagreement.value)
    most = percent_estimate(part.tasks[worst].disagreement)
    text = (
        f"The merge gives another label than its teachers on {percent_estimate(total.disagreement)} % of the inputs "
        f"(most on {view.tasks[worst]}: {most} %). If the experts' probabilities are right, "
        f"it errs on {percent_estimate(total.expected_error)} %: an estimate without labels, not certified"
    )
    if total.rectified and total.validation_error:
        n = total.validation_error.n
        text += f"; corrected on {n} validation labels: {percent_estimate(total.rectified)} %"
    return text + "."


def assumptions(parts: Sequence[tuple[View, LabelFreeSection]]) -> list[Assumption]:
    """Say what the estimate of the error rests on, without and with labels."""
    lines = [
        Assumption(
            "experts' probabilities right at the merge's labels",
            "E[1 − p_T(label)] as the merge's error",
            "assumed; its error is the experts' error of calibration at these labels",
        )
    ]
    if any(part.total.rectified for _, part in parts):
        rests = "rectified estimate of the error"
        how = "assumed of validation and test inputs; normal errors, no certificate"
        lines.append(Assumption("validation and test distributed alike", rests, how))
    return lines


def figure(view: View, part: LabelFreeSection) -> Figure:
    """Draw the estimates of the merge's error per task, with the observed ones where labels are read."""
    from diagnostics.figures import style

    figure = style.new_figure(3.5)
    axes = figure.subplots()
    rows, names = (*part.tasks, part.total), [*map(style.named, view.tasks), "all tasks"]
    styles = {
        "expected_error": (style.ORANGE, "o", "1 − teacher's probability of the merge's label"),
        "rectified": (style.BLUE, "s", "rectified on validation labels"),
        "validation_error": (style.GREEN, "^", "observed on validation alone"),
        "test_error": (INK, "x", "test error"),
    }
    for shift, (name, (colour, marker, label)) in enumerate(styles.items()):
        there = [(k, getattr(row, name)) for k, row in enumerate(rows) if getattr(row, name) is not None]
        if there:
            axes.errorbar(
                [k + 0.13 * (shift - 1.5) for k, _ in there], [100 * e.value for _, e in there],
                yerr=[200 * e.stderr for _, e in there], color=colour, marker=marker, markersize=4.5, linestyle="",
                capsize=2, label=label,
            )  # fmt: skip
    axes.set_xticks(range(len(rows)), names, rotation=30, ha="right")
    axes.set_ylabel("error of the merge (%, ± 2 s.e.)")
    style.legend_below(figure, axes, 2)
    return figure


SECTION = Section(
    kind=LabelFreeSection,
    compute=compute,
    title="What is known without labels",
    link="without labels",
    how=("7",),
    table=table,
    figures={"label-free": Drawn(figure)},
    sentence=sentence,
    assumptions=assumptions,
    missing=lambda part: part.missing,
    scored={"example"},
    rests_on="transfer error and residual linearise every score, L·V of an example",
)
