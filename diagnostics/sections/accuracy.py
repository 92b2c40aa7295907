"""Accuracy and risk per task, on the whole test split."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from bounds.scores import zero_one_loss
from bounds.types import Estimate, weighted_sum
from diagnostics.sections.base import Section, View
from diagnostics.sections.certificates import CertificateSection, differing
from diagnostics.sections.certified import in_unit
from diagnostics.subject import Subject
from diagnostics.terms.linear import losses
from diagnostics.workspace import Workspace
from merging.commands.evaluation import MODELS, TaskRow, accuracy_table, mean
from merging.task import accuracy, cross_entropy


@dataclass(frozen=True)
class Accuracy:
    """Test figures: rows per task, the α-weighted cross-entropy (nats) and 0-1 error of the merge, Σ α_t ln C_t."""

    tasks: tuple[TaskRow, ...]
    risk: Estimate
    error: Estimate
    trivial_risk: float


def compute(workspace: Workspace, subject: Subject) -> Accuracy:
    """Score the three models. Exact for the split; estimates of the task's risk with its sampling error."""
    workspace.check_labels("test", "accuracy")
    rows, risks, errors = [], [], []
    for name, teacher, merged in zip(workspace.names, workspace.teachers(), workspace.merged(subject), strict=True):
        labels = teacher["test_labels"]
        models = {"pretrained": teacher["pretrained"], "expert": teacher["expert"], "merged": merged["test"]}
        rows.append(
            TaskRow(
                name=name,
                classes=teacher["classes"],
                train_examples=teacher["sizes"].get("train", 0),
                test_examples=len(labels),
                accuracy={model: accuracy(scores, labels) for model, scores in models.items()},
                cross_entropy={model: cross_entropy(scores, labels) for model, scores in models.items()},
            )
        )
        risks.append(Estimate.of_mean(losses(merged["test"], labels)))
        errors.append(Estimate.of_mean(zero_one_loss(merged["test"], labels)))
    alpha = workspace.alpha
    return Accuracy(tuple(rows), weighted_sum(risks, alpha), weighted_sum(errors, alpha), workspace.trivial_risk)


def table(view: View, part: Accuracy) -> Table:
    """Accuracy and cross-entropy of the three models, a row per task."""
    return accuracy_table(part.tasks, view.label)


def sentence(view: View, part: Accuracy) -> str:
    """How good the merge is, measured and certified."""
    at = {m: 100 * mean(row.accuracy[m] for row in part.tasks) for m in MODELS}
    text = (
        f"The merge is right on {at['merged']:.1f} % of the test examples (mean over {len(part.tasks)} tasks; the "
        f"pretrained model on {at['pretrained']:.1f} %, the experts on {at['expert']:.1f} %)"
    )
    certificates = view.part(CertificateSection)
    if certificates and certificates.rows:  # the first, not the smallest: to choose among statements would cost δ
        first = certificates.rows[0]
        text += (
            f"; certified: {first.name}, at most {in_unit(first.value, first.unit)} % by {first.equation} with "
            f"n = {first.n}, δ = {first.delta:g} (test: {in_unit(first.test_error, first.unit)} %)"
        )
        text += differing(certificates)
    return text + "."


SECTION = Section(
    kind=Accuracy,
    compute=compute,
    title="Accuracy and risk",
    link="accuracy",
    table=table,
    sentence=sentence,
    scored={"example"},
)
