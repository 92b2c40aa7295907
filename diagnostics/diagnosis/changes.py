"""What changes in accuracy when a merge is changed, on the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bounds.types import Estimate, Params, Sample, weighted_sum
from diagnostics.subject import Subject
from diagnostics.terms.linear import subsample
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.editing import Edit, edited
from merging.methods import merge
from merging.plain import to_plain
from merging.task import Split, described, score

BATCH = 64
"""Examples of a forward pass: so few stay in the cache of a processor."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Another merge to measure, on ``examples`` a task: the merge with an edit, or, if named, what a method gives."""

    examples: int
    edit: Edit = field(default_factory=Edit)
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """Accuracy of another merge minus the merge's, per task and α-weighted; in 0..1, paired over examples."""

    tasks: tuple[Estimate, ...]
    mean: Estimate


def split_of(workspace: Workspace) -> Split:
    """Return the split that trials are measured on: validation, or test where a task has no validation split."""
    return "test" if any(fact["validation_labels"] is None for fact in workspace.facts()) else "validation"


def measured(workspace: Workspace, subject: Subject, trials: Sequence[Trial], what: str) -> list[Changes]:
    """Measure trials, each a piece of work. Estimated; exactly 0 ± 0 where the same examples are right as before.

    Args:
        workspace: tasks, α, cache, processes.
        subject: the merge that they are compared with.
        trials: what to measure.
        what: said while it is computed.

    Raises:
        InputError: a trial that cannot be merged (see :func:`merging.editing.edited`).
    """
    split, merged, facts = split_of(workspace), workspace.merged(subject), workspace.facts()

    def one(index: int) -> Mapping[str, Any]:
        theta = _weights(workspace, subject, trials[index])
        return {"right": [_right(workspace, i, theta, split, trials[index].examples) for i in range(len(facts))]}

    keys = [subject.key, split, to_plain(list(trials))]
    results = []
    for piece in workspace.pieces(Pieces("trials", keys, one, len(trials)), f"{subject.label}: {what}"):
        differences = []
        for scores, fact, new in zip(merged, facts, piece["right"], strict=True):
            few = subsample(Sample(scores[split], fact[f"{split}_labels"]), len(new), workspace.settings.seed)
            assert isinstance(few.inputs, Tensor)
            before = few.inputs.argmax(dim=1) == few.labels
            differences.append(Estimate.of_mean(new.double() - before.double()))
        results.append(Changes(tuple(differences), weighted_sum(differences, workspace.alpha)))
    return results


def _weights(workspace: Workspace, subject: Subject, trial: Trial) -> Params:
    """Merge on the CPU, where the suite was loaded; return the weights on the device."""
    suite, other = workspace.loaded, trial.method
    made = merge(other, suite, **trial.settings) if other else edited(subject.artifact, suite, trial.edit)
    return {name: value.to(workspace.device) for name, value in made.merged.items()}


def _right(workspace: Workspace, index: int, theta: Params, split: Split, examples: int) -> Tensor:
    task = workspace.suite.tasks[index]
    sample = subsample(getattr(task, split), examples, workspace.settings.seed)
    what = described(task.name, split, "changed")
    scores = score(task.forward, theta, sample.inputs, classes=len(task.class_names), what=what, batch_size=BATCH)
    assert sample.labels is not None
    return (scores.argmax(dim=1) == sample.labels).cpu()
