"""Comparators of (5): other bounds on the linearised risk of the same merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bounds.theorems import MergedModel
from bounds.types import Bound, InputError, Status
from diagnostics.subject import Subject
from diagnostics.terms import forms
from diagnostics.terms.linear import subsample
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.params import norm, squared_norms, subtract


@dataclass(frozen=True, kw_only=True)
class Comparator:
    """A bound on the risk of f^lin at θ_m (nats), the number of its equation or section, and what it is."""

    name: str
    equation: str
    about: str
    value: float
    stderr: float
    status: Status
    vacuous: bool


ABOUT = {
    "merge-anchored": "(5) with the experts' risk bounded from θ_m by (6): never below it on the same examples",
    "direct": "PAC-Bayes around θ_m on every task: no H_Q, no β; pays ‖θ_m − θ_0‖ once per task",
    "pooled": "the same with one posterior and one KL for all tasks; their samples must be independent",
}
"""What the comparators are."""


def compute(
    workspace: Workspace, subject: Subject, along: Sequence[Tensor], merge: MergedModel, missing: dict[str, str]
) -> list[Comparator]:
    """Evaluate the comparators at θ_m.

    Args:
        workspace: what the sections share.
        subject: the merge.
        along: J(x)(θ_m - θ_0) of the held-out examples, per task.
        merge: gap and gain of (5) in the linearised reading.
        missing: takes the reason why there is no pooled form, where no Λ of its grid fits.
    """
    displacement, side, settings = workspace.displacement(subject), workspace.experts, workspace.settings
    (products,) = workspace.gather([_training(workspace, subject)], f"{subject.label}: training examples at θ_m")
    training = [
        forms.training_at_merge(world, found, statistics.n)
        for world, found, statistics in zip(side.worlds, products, side.linear.statistics, strict=True)
    ]
    worlds = [world.towards(tangents) for world, tangents in zip(side.worlds, along, strict=True)]
    squares = tuple(squared_norms(displacement, workspace.blocks).values())
    apart = [norm(subtract(delta, displacement)) ** 2 for delta in workspace.vectors.deltas]
    direct, statistics = forms.direct(worlds, training, squares, side, settings)
    rows = [
        _row("merge-anchored", "(6)", forms.merge_anchored(side.on_reported(), merge, training, apart)),
        _row("direct", "5, direct", direct),
    ]
    try:
        rows.append(_row("pooled", "5, pooled", forms.pooled(worlds, statistics, side, settings)))
    except InputError as error:
        missing["pooled form"] = str(error)
    return rows


def _training(workspace: Workspace, subject: Subject) -> Pieces:
    displacement = workspace.displacement(subject)

    def one(index: int) -> Mapping[str, Any]:
        task, settings = workspace.suite.tasks[index], workspace.settings
        sample = subsample(task.train, settings.train, settings.seed).take(slice(settings.kernel))
        return forms.training_products(task, sample, workspace.vectors.base, displacement)

    return Pieces("training at merge", subject.key, one, len(workspace.names))


def _row(name: str, equation: str, bound: Bound) -> Comparator:
    return Comparator(
        name=name,
        equation=equation,
        about=ABOUT[name],
        value=bound.value,
        stderr=bound.stderr,
        status=bound.status,
        vacuous=bound.vacuous,
    )
