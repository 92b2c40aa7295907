"""A task: a network function with its frozen head, and four disjoint splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.autodiff import batches
from bounds.types import Forward, Inputs, Params, Sample, refuse


@dataclass(frozen=True)
class Task:
    """One classification task.

    ``forward`` maps (θ, inputs) to scores [N, C] with the task's head inside; ``train`` is S_t, the sample the expert
    was fine-tuned on; ``calibration`` has no labels; ``validation`` chooses, ``test`` reports. Splits are disjoint.

    Raises:
        InputError: an empty split, a labelled calibration split, a missing or out-of-range label.
    """

    name: str
    forward: Forward
    class_names: Sequence[str]
    train: Sample
    calibration: Sample
    validation: Sample
    test: Sample

    def __post_init__(self) -> None:
        for split in ("train", "calibration", "validation", "test"):
            sample: Sample = getattr(self, split)
            what = f"task {self.name!r}, split {split}"
            if len(sample) == 0:
                refuse(what, expected="at least one example", got="none", cure="give every split examples")
            if split == "calibration":
                if sample.labels is not None:
                    refuse(what, expected="no labels", got="labels", cure="pass Sample(inputs)")
            elif sample.labels is None:
                refuse(what, expected="labels", got="none", cure="pass Sample(inputs, labels)")
            elif int(sample.labels.min()) < 0 or int(sample.labels.max()) >= len(self.class_names):
                refuse(
                    what,
                    expected=f"labels in 0..{len(self.class_names) - 1}",
                    got=f"{int(sample.labels.min())}..{int(sample.labels.max())}",
                    cure="list every class in class_names",
                )


@torch.no_grad()
def score(forward: Forward, params: Params, inputs: Inputs, *, batch_size: int = 256) -> Tensor:
    """Return the scores [N, C] of all inputs, computed in batches without gradients. Exact."""
    return torch.cat([forward(params, batch) for batch in batches(inputs, batch_size)])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest score is at the label (in 0..1)."""
    return float((scores.argmax(dim=1) == labels).double().mean())


def cross_entropy(scores: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(F.cross_entropy(scores.double(), labels))


def mean_accuracy(tasks: Sequence[Task], params: Params, split: str) -> float:
    """Unweighted mean over tasks of the accuracy of θ on the named split."""
    values = []
    for task in tasks:
        sample: Sample = getattr(task, split)
        assert sample.labels is not None
        values.append(accuracy(score(task.forward, params, sample.inputs), sample.labels))
    return sum(values) / len(values)
