"""What of θ a merge leaves alone: entries kept at θ_0 by their names, running statistics that are set, not merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from bounds.running_statistics import is_statistic, reestimated
from bounds.types import Forward, Inputs, Params, leaves, refuse, take
from merging.draws import task_generators
from merging.rows import CALIBRATION, NOTHING, Merge
from merging.task import Split, Task
from merging.task_vectors import TaskVectors

Statistics: TypeAlias = Literal["average", "base", "calibration", "merged"]
"""What becomes of running statistics: the mean over experts, θ_0's, estimated again, or merged like weights."""
KEPT, STATISTICS = "kept at θ_0", "running statistics"
"""Blocks of the coefficients for what a method did not choose."""
EXAMPLES = 64
"""Calibration examples of a task by which running statistics are estimated again, at most."""


@dataclass(frozen=True)
class Selection:
    """Which entries of θ a merge works on.

    ``only`` and ``excluding`` are patterns of names (``*`` for any text): an entry that no pattern of ``only`` names,
    or that one of ``excluding`` names, stays at θ_0. ``statistics``: running means and log variances are averaged over
    the experts (the default), kept at θ_0, estimated again on the calibration splits once the weights are merged
    (REPAIR, arXiv 2211.08403), or merged by the method like every other entry.

    Raises:
        InputError: unknown ``statistics``.
    """

    only: Sequence[str] = ()
    excluding: Sequence[str] = ()
    statistics: Statistics = "average"

    def __post_init__(self) -> None:
        if self.statistics not in get_args(Statistics):
            known = " or ".join(get_args(Statistics))
            refuse("running statistics", expected=known, got=repr(self.statistics), cure="choose one")

    def fixed(self, names: Sequence[str]) -> dict[str, str]:
        """Return the entries that the method does not touch, with the block they form.

        Raises:
            InputError: a pattern that names nothing, or patterns that leave nothing to merge.
        """
        for pattern in (*self.only, *self.excluding):
            if not any(fnmatchcase(name, pattern) for name in names):
                cure = f"use names such as {', '.join(names[:3])}, with * for any text"
                refuse(f"pattern {pattern!r}", expected="one that names a tensor of the model", got="none", cure=cure)
        result = {}
        for name in names:
            chosen = not self.only or _any(name, self.only)
            if not chosen or _any(name, self.excluding):
                result[name] = KEPT
            elif is_statistic(name) and self.statistics != "merged":
                result[name] = KEPT if self.statistics == "base" else STATISTICS
        if len(result) == len(names):
            refuse(
                "selection",
                expected="something to merge",
                got="every tensor left out",
                cure="widen --only, or --except less",
            )
        return result

    def needs(self, names: Sequence[str]) -> frozenset[Split]:
        """Return the splits that it needs."""
        again = self.statistics == "calibration" and STATISTICS in self.fixed(names).values()
        return CALIBRATION if again else NOTHING

    @property
    def record(self) -> dict[str, Any]:
        """What the artifact says about it."""
        return {"only": list(self.only), "except": list(self.excluding), "running_statistics": self.statistics}


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Part:
    """Task vectors and tasks without what a selection fixes, and the way back to whole weights."""

    def __init__(self, selection: Selection, vectors: TaskVectors, tasks: Sequence[Task]) -> None:
        """Take the tasks as the method will be handed them."""
        self.selection, self.whole = selection, vectors
        self.blocks = selection.fixed(list(vectors.base))
        self.values = {name: self._value(name, block) for name, block in self.blocks.items()}
        inside = [name for name in vectors.base if name not in self.blocks]
        self.vectors = vectors.restricted(inside) if self.blocks else vectors
        self.tasks = [_filled(task, self.values) for task in tasks] if self.blocks else list(tasks)

    def _value(self, name: str, block: str) -> Tensor:
        base = self.whole.base[name]
        if block == KEPT:
            return base
        count = len(self.whole)
        return sum((self.whole.expert_tensor(t, name) for t in range(count)), torch.zeros_like(base)) / count

    def completed(self, merge: Merge, seed: int) -> Merge:
        """Return the whole weights of a merge of the part; λ has a column for each kind of fixed entries.

        λ of what was kept is 0, of averaged statistics 1/T. Statistics that are estimated again make the weights no
        combination of task vectors: there is no λ then.
        """
        if not self.blocks:
            return merge
        params = {name: self.values[name] if name in self.values else merge.params[name] for name in self.whole.base}
        if STATISTICS in self.blocks.values() and self.selection.statistics == "calibration":
            return replace(merge, params=self._estimated(params, seed), coefficients=None, blocks=None)
        if merge.coefficients is None or merge.blocks is None:
            return replace(merge, params=params)
        columns, blocks = [merge.coefficients], dict(merge.blocks)
        for block, value in ((KEPT, 0.0), (STATISTICS, 1 / len(self.whole))):
            if names := tuple(name for name, of in self.blocks.items() if of == block):
                blocks[block] = names
                columns.append(torch.full_like(merge.coefficients[:, :1], value))
        return replace(merge, params=params, coefficients=torch.cat(columns, dim=1), blocks=blocks)

    def _estimated(self, params: Params, seed: int) -> dict[str, Tensor]:
        chosen = []
        for task, generator in zip(self.tasks, task_generators(self.whole.names, seed), strict=True):
            index = torch.randperm(len(task.calibration), generator=generator)[:EXAMPLES]
            chosen.append(take(task.calibration.inputs, index))
        kept = {name for name in params if self.blocks.get(name) != STATISTICS}
        found = reestimated(self.tasks[0].forward, params, _joined(chosen), kept)
        return {name: found[name] if self.blocks.get(name) == STATISTICS else value for name, value in params.items()}


def _filled(task: Task, values: Params) -> Task:
    """Return a task whose forward function takes the fixed entries from here, unless it is given them."""
    inner: Forward = task.forward

    def forward(params: Params, inputs: Inputs) -> Tensor:
        device = next(iter(params.values())).device
        rest = {name: value.to(device) for name, value in values.items() if name not in params}
        return inner({**rest, **params}, inputs)

    result = object.__new__(type(task))
    for name, value in vars(task).items():
        object.__setattr__(result, name, forward if name == "forward" else value)
    return result


def _joined(batches: Sequence[Inputs]) -> Inputs:
    """Return one batch of several.

    Raises:
        InputError: examples of different shapes.
    """
    columns = list(zip(*map(leaves, batches), strict=True))
    if any(len({tensor.shape[1:] for tensor in column}) > 1 for column in columns):
        shapes = [list(leaves(batch)[0].shape[1:]) for batch in batches]
        cure = "use running statistics average, base or merged"
        refuse("calibration inputs of all tasks", expected="one shape", got=shapes, cure=cure)
    whole = [torch.cat(column) for column in columns]
    return whole[0] if isinstance(batches[0], Tensor) else dict(zip(batches[0], whole, strict=True))
