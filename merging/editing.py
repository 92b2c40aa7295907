"""A merge changed after it was made: without an expert, at another distance from θ_0, with tensors back at θ_0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging import closed_form
from merging.artifact import MergeArtifact
from merging.matching import check_match
from merging.methods import merge
from merging.plain import checked, to_plain
from merging.rows import Progress, silent
from merging.selection import KEPT, STATISTICS, Selection
from merging.specification import Specification
from merging.suites import Suite

RECORD = "edit"
"""Where an artifact's ``selection`` says how it was edited."""


@dataclass(frozen=True)
class Edit:
    """What to change: experts to leave out, a factor of θ_m - θ_0, patterns of tensors to put back to θ_0.

    Raises:
        InputError: a factor that is not finite.
    """

    without: tuple[str, ...] = ()
    scale: float = 1.0
    base: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            refuse("scale", expected="a finite number", got=self.scale, cure="1 changes nothing")

    def after(self, earlier: Edit) -> Edit:
        """Return one edit that does both, this one last."""
        return Edit(
            tuple(dict.fromkeys((*earlier.without, *self.without))),
            earlier.scale * self.scale,
            tuple(dict.fromkeys((*earlier.base, *self.base))),
        )


def earlier_edit(artifact: MergeArtifact) -> Edit:
    """Return what was changed already.

    Raises:
        InputError: a record that is none.
    """
    return checked(Edit, artifact.selection.get(RECORD, to_plain(Edit())), "edits of the artifact")


def edited(artifact: MergeArtifact, suite: Suite, edit: Edit, progress: Progress = silent) -> MergeArtifact:
    """Return the merge with the edit. Exact.

    A row in closed form is merged again without the experts, with the settings, the selection and the chosen scale that
    the artifact recorded; of any other row the coefficients of these experts become 0, and those of the others stay
    (running statistics: the mean over the others). What was edited earlier stays edited.

    Args:
        artifact: a merge of the suite.
        suite: the suite.
        edit: what to change.
        progress: shows progress.

    Raises:
        InputError: an artifact of another suite; unknown experts or tensors; all experts left out; a row that neither
            merges again in closed form nor has coefficients.
    """
    check_match(suite, artifact)
    before = earlier_edit(artifact)
    whole = edit.after(before)
    if set(edit.without) - set(before.without):
        if artifact.method in closed_form.ROWS:
            artifact, edit = _merged_again(artifact, suite, whole.without, progress), replace(whole, without=())
        else:
            artifact = _dropped(artifact, suite, edit.without)
    artifact = _scaled(artifact, suite.task_vectors.base, edit.scale)
    artifact = _put_back(artifact, suite.task_vectors.base, edit.base)
    return replace(artifact, selection={**artifact.selection, RECORD: to_plain(whole)})


def _merged_again(artifact: MergeArtifact, suite: Suite, without: Sequence[str], progress: Progress) -> MergeArtifact:
    kept = _others(artifact, without)
    settings = dict(artifact.settings)
    if settings.get("scale", 0.0) is None and "chosen_scale" in artifact.history:
        settings["scale"] = artifact.history["chosen_scale"][0]
    again = merge(
        Specification(artifact.method, {}, _chosen(artifact)).label,
        suite.task_vectors.of_experts(kept),
        [task for task in suite.tasks if task.name in kept],
        selection=_selection(artifact.selection),
        progress=progress,
        **settings,
    )
    rows = again.coefficients
    if rows is not None:
        position = {name: index for index, name in enumerate(kept)}
        rows = torch.stack(
            [rows[position[name]] if name in position else torch.zeros_like(rows[0]) for name in artifact.names]
        )
    return replace(artifact, merged=again.merged, coefficients=rows, blocks=again.blocks)


def _chosen(artifact: MergeArtifact) -> dict[str, dict[str, Any]]:
    """Return what followed the method, with the values that it chose on labels as they were chosen."""
    chosen = {name: values[0] for name, values in artifact.history.items() if len(values) == 1}
    return {
        name: {key: chosen.get(f"{name}_{key}") if value is None else value for key, value in settings.items()}
        for name, settings in artifact.then.items()
    }


def _others(artifact: MergeArtifact, without: Sequence[str]) -> list[str]:
    for name in without:
        if name not in artifact.names:
            refuse("expert", expected=" or ".join(artifact.names), got=repr(name), cure="name experts of the merge")
    kept = [name for name in artifact.names if name not in without]
    if not kept:
        refuse("experts left out", expected="fewer than all", got="all", cure="leave one in")
    return kept


def _selection(record: Mapping[str, Any]) -> Selection:
    statistics = record.get("running_statistics", "average")
    return Selection(tuple(record.get("only", ())), tuple(record.get("except", ())), statistics)


def _dropped(artifact: MergeArtifact, suite: Suite, without: Sequence[str]) -> MergeArtifact:
    """θ_m - Σ_b λ_jb τ_j^b; the mean of running statistics is taken over the others."""
    kept, rows, blocks = _others(artifact, without), artifact.coefficients, artifact.blocks
    if rows is None or blocks is None:
        refuse(
            f"expert to leave out of a merge by {artifact.label}",
            expected="a method in closed form, or a merge that has coefficients",
            got="neither",
            cure="make a suite of the other experts and merge that",
        )
    gone = torch.tensor([name not in kept for name in artifact.names])
    new = rows.clone()
    for column, block in enumerate(blocks):
        old = new[:, column].clone()
        if block == STATISTICS:
            left = old[~gone].sum()
            new[~gone, column] *= old.sum() / left if left != 0 else 1.0
        new[gone, column] = 0
    return replace(artifact, merged=_moved(artifact.merged, suite, new - rows, blocks), coefficients=new)


def _moved(params: Params, suite: Suite, change: Tensor, blocks: Blocks) -> dict[str, Tensor]:
    """Return the weights after a change of the coefficients."""
    result, vectors = dict(params), suite.task_vectors
    for column, names in enumerate(blocks.values()):
        weights = change[:, column]
        if not bool(weights.any()):
            continue
        for name in names:
            deltas = vectors.stacked[name].to(vectors.dtype)
            result[name] = params[name] + torch.tensordot(weights.to(vectors.dtype), deltas, dims=1)
    return result


def _scaled(artifact: MergeArtifact, base: Params, scale: float) -> MergeArtifact:
    """θ_0 + s (θ_m - θ_0), running statistics included."""
    if scale == 1:
        return artifact
    params = {name: base[name] + scale * (value - base[name]) for name, value in artifact.merged.items()}
    rows = None if artifact.coefficients is None else scale * artifact.coefficients
    return replace(artifact, merged=params, coefficients=rows)


def _put_back(artifact: MergeArtifact, base: Params, patterns: Sequence[str]) -> MergeArtifact:
    """Put tensors back to θ_0; in λ they form, with what the merge had kept there, one block of zeros.

    Raises:
        InputError: a pattern that names no tensor.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in base):
            cure = f"use names such as {', '.join(list(base)[:3])}, with * for any text"
            refuse(f"pattern {pattern!r}", expected="one that names a tensor of the model", got="none", cure=cure)
    back = [name for name in base if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not back:
        return artifact
    params = {name: base[name] if name in back else value for name, value in artifact.merged.items()}
    rows, blocks = artifact.coefficients, artifact.blocks
    if rows is None or blocks is None:
        return replace(artifact, merged=params)
    left = {block: tuple(n for n in names if n not in back) for block, names in blocks.items() if block != KEPT}
    columns = [column for column, block in enumerate(blocks) if left.get(block)]
    fixed = tuple(n for n in base if n in back or n in blocks.get(KEPT, ()))
    rows = torch.cat([rows[:, columns], torch.zeros_like(rows[:, :1])], dim=1)
    return replace(
        artifact, merged=params, coefficients=rows, blocks={**{b: n for b, n in left.items() if n}, KEPT: fixed}
    )


def looked_at(artifact: MergeArtifact, candidates: int) -> MergeArtifact:
    """Return the artifact saying that it is one of so many models compared on the labels of the validation split.

    Certificates pay for all of them. Each may have been a choice already: numbers multiply.

    Raises:
        InputError: fewer than one.
    """
    if candidates < 1:
        refuse("candidates", expected="at least 1", got=candidates, cure="1: nothing was chosen on validation")
    if candidates == 1 or artifact.used is None:
        return artifact
    before = artifact.used.get("validation", 1)
    return replace(artifact, used={**artifact.used, "validation": before and before * candidates})
