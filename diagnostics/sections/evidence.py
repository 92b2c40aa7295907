"""What the certificates of weighted means rest on: labelled examples, guesses without labels, and a pilot.

The labelled examples are the validation split. The pilot, from which the constants of (14) and (15) come, are
calibration inputs (those that the merge was learned on, where it was) with labels drawn from the experts. Calibration
inputs that neither the merge nor the pilot used serve as the unlabelled inputs of (15), unless the splits were drawn
class by class: what a merge leaves over of such a split has other shares of the classes, and the merge depends on what
it took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.certificates import BoundedSample
from bounds.scores import largest_smoothed_loss, probabilities, smoothed_losses
from bounds.types import take
from diagnostics.settings import FLOOR
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.artifact import MergeArtifact
from merging.draws import chosen_positions
from merging.methods import METHODS, POST_PROCESSINGS
from merging.task import score_task

PILOT = 64
"""Calibration examples of each task in the pilot, at most."""

CLOSE = 0.01
"""Probability below which classes in two splits agree too well to have been drawn by chance."""

Scores = Mapping[str, Tensor]
"""Of one task's examples: model -> scores [N, C]; models are pretrained, expert and merged."""


@dataclass(frozen=True)
class Quantity:
    """A bounded quantity of an example: ``values`` maps scores to what it would be with each label [N, C].

    ``lower`` and ``upper`` are its range as functions of C.
    """

    values: Callable[[Scores], Tensor]
    lower: Callable[[int], float]
    upper: Callable[[int], float]


def errors(scores: Tensor) -> Tensor:
    """Whether the largest score is elsewhere, for each label [N, C]."""
    return 1.0 - F.one_hot(scores.argmax(-1), scores.shape[-1]).double()


ERROR = Quantity(lambda s: errors(s["merged"]), lambda _: 0.0, lambda _: 1.0)
NATS = Quantity(
    lambda s: smoothed_losses(s["merged"], FLOOR), lambda _: 0.0, lambda classes: largest_smoothed_loss(classes, FLOOR)
)
IMITATION = Quantity(
    lambda s: errors(s["expert"]) + (s["merged"].argmax(-1) != s["expert"].argmax(-1)).double()[:, None],
    lambda _: 0.0,
    lambda _: 2.0,
)
AGAINST_TEACHER = Quantity(lambda s: errors(s["merged"]) - errors(s["expert"]), lambda _: -1.0, lambda _: 1.0)
AGAINST_PRETRAINED = Quantity(lambda s: errors(s["merged"]) - errors(s["pretrained"]), lambda _: -1.0, lambda _: 1.0)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Per task: scores and labels of validation, test and pilot, and scores of unlabelled inputs (or None).

    ``why_not`` says why there are no unlabelled inputs ("" if there are).
    """

    labelled: Sequence[Scores]
    labels: Sequence[Tensor]
    test: Sequence[Scores]
    test_labels: Sequence[Tensor]
    pilot: Sequence[Scores] | None
    pilot_positions: Sequence[Tensor]
    pilot_labels: Sequence[Tensor]
    unlabelled: Sequence[Scores] | None
    why_not: str

    def samples(self, quantity: Quantity, *, inputs: bool) -> list[BoundedSample]:
        """Return the labelled sample of every task, with guesses on unlabelled ``inputs`` where asked for."""
        others = self.unlabelled if inputs else None
        return [
            _sample(quantity, scores, labels, None if others is None else others[t])
            for t, (scores, labels) in enumerate(zip(self.labelled, self.labels, strict=True))
        ]

    def on_test(self, quantity: Quantity) -> list[float]:
        """Return the mean of every task's test examples. Exact for the split."""
        pairs = zip(self.test, self.test_labels, strict=True)
        return [float(_sample(quantity, scores, labels, None).values.mean()) for scores, labels in pairs]

    def pilots(self, quantity: Quantity) -> list[BoundedSample] | None:
        """Return the pilot of every task, with guesses."""
        if self.pilot is None:
            return None
        return [_sample(quantity, s, y, s) for s, y in zip(self.pilot, self.pilot_labels, strict=True)]


def _sample(quantity: Quantity, scores: Scores, labels: Tensor, others: Scores | None) -> BoundedSample:
    values, classes = quantity.values(scores), scores["merged"].shape[-1]
    return BoundedSample(
        values=values.gather(1, labels[:, None])[:, 0],
        lower=quantity.lower(classes),
        upper=quantity.upper(classes),
        predicted=None if others is None else _guess(quantity, scores),
        unlabelled=None if others is None else _guess(quantity, others),
    )


def _guess(quantity: Quantity, scores: Scores) -> Tensor:
    """Return what the quantity is on average if labels are the expert's: g of (15)."""
    return (probabilities(scores["expert"]) * quantity.values(scores)).sum(-1)


@dataclass(frozen=True)
class CalibrationUse:
    """Positions per task: of the pilot, and of what neither it nor the merge used; ``why_not`` where there are none."""

    pilot: list[Tensor]
    free: list[Tensor]
    why_not: str


def calibration_use(artifact: MergeArtifact, sizes: Sequence[int], seed: int, *, by_class: bool) -> CalibrationUse:
    """Say which calibration examples the merge used, and choose the pilot among them (among all where it used none).

    Args:
        artifact: the merge.
        sizes: calibration examples of each task.
        seed: of the pilot where the merge used none.
        by_class: whether the splits were drawn class by class.
    """
    names, settings = artifact.names, artifact.settings
    drawn = chosen_positions(names, sizes, PILOT, seed)
    nothing = [torch.zeros(0, dtype=torch.long) for _ in sizes]
    if artifact.used is None or artifact.selection.get("running_statistics") == "calibration":
        return CalibrationUse(drawn, nothing, "which calibration inputs the merge used is not known")
    whole, used = "calibration" in artifact.used, drawn
    if whole:
        if not {"examples", "seed"} <= set(settings) or not _of_this_package(artifact):
            return CalibrationUse(drawn, nothing, "which calibration inputs the merge used is not known")
        used = chosen_positions(names, sizes, settings["examples"] or min(sizes), settings["seed"])
    pilot = [positions[:PILOT] for positions in used]
    if by_class:
        why = "the splits were drawn class by class: what a merge leaves over has other shares of the classes"
        return CalibrationUse(pilot, nothing, why)
    free = [_rest(size, positions) for size, positions in zip(sizes, used, strict=True)]
    if not all(map(len, free)):
        return CalibrationUse(pilot, nothing, "the merge used all calibration inputs of a task")
    return CalibrationUse(pilot, free, "")


def _of_this_package(artifact: MergeArtifact) -> bool:
    """Whether all stages choose their examples by ``chosen_positions``: what somebody added may do as it likes."""
    rows = [METHODS.get(artifact.method), *(POST_PROCESSINGS.get(name) for name in artifact.then)]
    builds: list[Any] = [None if row is None else row.build for row in rows]
    return all(getattr(getattr(b, "func", b), "__module__", "").split(".")[0] == "merging" for b in builds)


def _rest(size: int, used: Tensor) -> Tensor:
    left = torch.ones(size, dtype=torch.bool)
    left[used] = False
    return left.nonzero()[:, 0]


def drawn_by_class(labels: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether the counts of classes in two splits agree so well, over all tasks, that chance did not draw them.

    The statistic of the chi-square test of homogeneity, added over tasks, is far below what independent draws give: in
    its lower CLOSE tail. Splits of which only a few tasks were drawn by class may pass for drawn by chance.
    """
    from scipy.stats import chi2, chi2_contingency  # takes seconds to import

    total, freedom = 0.0, 0
    for mine, other in zip(labels, others, strict=True):
        classes = torch.cat([mine, other]).unique()
        if len(classes) > 1:
            table = [[int((y == k).sum()) for k in classes] for y in (mine, other)]
            found: Any = chi2_contingency(table, correction=False)
            total, freedom = total + float(found.statistic), freedom + int(found.dof)
    return freedom > 0 and float(chi2.cdf(total, freedom)) < CLOSE


def gathered(workspace: Workspace, subject: Subject) -> Evidence:
    """Score what is needed. Exact, but for the pilot's labels, which are drawn from the experts."""
    teachers, merged = workspace.teachers(), workspace.merged(subject)
    labels, test_labels = ([t[f"{split}_labels"] for t in teachers] for split in ("validation", "test"))
    pairs = list(zip(merged, teachers, strict=True))
    kept: dict[str, Any] = {
        "labelled": [
            {"merged": m["validation"], "expert": t["validation"], "pretrained": t["pretrained_validation"]}
            for m, t in pairs
        ],
        "labels": labels,
        "test": [{"merged": m["test"], "expert": t["expert"], "pretrained": t["pretrained"]} for m, t in pairs],
        "test_labels": test_labels,
    }
    sizes = [t["sizes"].get("calibration", 0) for t in teachers]
    if not all(sizes):
        return Evidence(
            **kept,
            pilot=None,
            pilot_positions=(),
            pilot_labels=(),
            unlabelled=None,
            why_not="a task has no calibration inputs",
        )
    by_class = drawn_by_class(labels, test_labels)
    use = calibration_use(subject.artifact, sizes, workspace.settings.seed, by_class=by_class)
    pilot = on_calibration(workspace, subject, use.pilot, "pilot")
    generator = torch.Generator().manual_seed(workspace.settings.seed)
    drawn = [torch.multinomial(probabilities(s["expert"]), 1, generator=generator)[:, 0] for s in pilot]
    others = None if use.why_not else on_calibration(workspace, subject, use.free, "unlabelled")
    kept |= {"pilot": pilot, "pilot_positions": use.pilot, "pilot_labels": drawn, "unlabelled": others}
    return Evidence(**kept, why_not=use.why_not)


def on_calibration(
    workspace: Workspace, subject: Subject, positions: Sequence[Tensor], name: str
) -> list[Mapping[str, Any]]:
    """Return scores of pretrained model, expert and merge on calibration inputs at these positions, per task."""

    def one(index: int) -> Mapping[str, Any]:
        task, vectors = workspace.suite.tasks[index], workspace.vectors
        inputs = take(task.calibration.inputs, positions[index].to(workspace.device))
        models = {"pretrained": vectors.base, "expert": vectors.expert(index), "merged": workspace.weights(subject)}
        return {
            model: score_task(task, theta, inputs, "calibration", model).double().cpu()
            for model, theta in models.items()
        }

    where = [p.tolist() for p in positions]
    return workspace.pieces(
        Pieces(name, (subject.key, where), one, len(workspace.names)), f"{subject.label}: {name} inputs"
    )
