"""Accuracy and risk per task, on the whole test split."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bounds.types import Estimate, weighted_sum
from diagnostics.subject import Subject
from diagnostics.terms.linear import losses
from diagnostics.workspace import Workspace
from merging.commands.evaluation import TaskRow
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
    rows, risks, errors = [], [], []
    for name, teacher, merged in zip(workspace.names, workspace.teachers(), workspace.merged(subject), strict=True):
        labels = teacher["test_labels"]
        models = {"pretrained": teacher["pretrained"], "expert": teacher["expert"], "merged": merged["test"]}
        rows.append(
            TaskRow(
                name,
                teacher["classes"],
                teacher["sizes"]["train"],
                len(labels),
                {model: accuracy(scores, labels) for model, scores in models.items()},
                {model: cross_entropy(scores, labels) for model, scores in models.items()},
            )
        )
        risks.append(Estimate.of_mean(losses(merged["test"], labels)))
        errors.append(Estimate.of_mean((merged["test"].argmax(dim=1) != labels).to(torch.float64)))
    alpha = workspace.alpha
    return Accuracy(tuple(rows), weighted_sum(risks, alpha), weighted_sum(errors, alpha), workspace.trivial_risk)
