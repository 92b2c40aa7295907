"""The merge artifact ``out.pt``: merged weights together with everything that explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging import records
from merging.params import check_partition, finite
from merging.plain import checked

SCHEMA = "mergebound.artifact/3"


@dataclass(frozen=True, kw_only=True)
class MergeArtifact:
    """A merge and where it came from.

    ``merged`` is θ_m. For methods that are linear in the task vectors, ``coefficients`` is λ [T, L] and ``blocks``
    names its L columns; otherwise both are None. ``names`` are the tasks (rows of λ), ``settings`` the method's
    settings, ``sources`` file -> sha256 of θ_0, experts and data, ``history`` one list of numbers per quantity logged,
    ``seconds`` the wall time of the merge. ``used`` names every split that was handed to the method, with the number of
    fixed models that were compared on its labels (None: none, or the method does not say); no other split can have been
    seen. ``used`` is None where that was not recorded. ``origin`` is what ``merging.suites.load`` finds the suite by
    (empty: made in memory); ``selection`` says what of θ was merged (:class:`merging.selection.Selection`).
    ``fingerprint`` [T, 10] recognises a suite that is not made of files alone (:mod:`merging.suites.content`).
    ``then`` are the post-processings that followed the method, in order, each with its settings (:mod:`merging.post`).
    """

    method: str
    names: Sequence[str]
    merged: Params
    coefficients: Tensor | None = None
    blocks: Blocks | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    suite: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    schema: str = SCHEMA
    used: Mapping[str, int | None] | None = None
    origin: str = ""
    selection: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Tensor | None = None
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method with what followed it: ``tsv_m+svc``."""
        return "+".join([self.method, *self.then])

    @property
    def all_settings(self) -> dict[str, Any]:
        """The method's settings, and those of what followed it as ``svc.floor``."""
        after = {f"{name}.{key}": value for name, given in self.then.items() for key, value in given.items()}
        return {**self.settings, **after}


def save(artifact: MergeArtifact, path: str | Path) -> None:
    """Write an artifact with its digest, atomically: the file is complete or not there (an older one stays).

    Raises:
        InputError: an artifact that contradicts itself (see :func:`load`); see :func:`merging.files.replacing`.
    """
    _check(artifact, f"artifact {path}", "this is an error of the method")
    content = {f.name: getattr(artifact, f.name) for f in fields(artifact)}
    content["names"] = list(artifact.names)
    if artifact.blocks is not None:
        content["blocks"] = {block: list(names) for block, names in artifact.blocks.items()}
    records.save(path, content)


def load(path: str | Path) -> MergeArtifact:
    """Read an artifact, executing nothing (``weights_only=True``), and check it.

    Raises:
        InputError: a missing, truncated, changed or foreign file, another schema, fields of other types, weights that
            are not finite, or coefficients, blocks, names and weights that do not agree.
    """
    what, cure = f"artifact {path}", "make one with python -m merging --out out.pt"
    content = {"then": {}, **records.load(path, SCHEMA, what, cure)}  # nothing followed a method in earlier versions
    artifact = checked(MergeArtifact, content, what, cure)
    _check(artifact, what, "merge again")
    return artifact


def _check(artifact: MergeArtifact, what: str, cure: str) -> None:
    """Check that the fields agree with each other, and that weights are finite.

    Raises:
        InputError: they do not, or are not.
    """
    for name, value in artifact.merged.items():
        if not value.is_floating_point():
            refuse(f"{what}, {name}", expected="weights of a float type", got=value.dtype, cure=cure)
        if not finite(value):
            refuse(f"{what}, {name}", expected="finite weights", got="nan or inf", cure=cure)
    names, lam, blocks = list(artifact.names), artifact.coefficients, artifact.blocks
    if not names or len(set(names)) != len(names) or not artifact.merged:
        got = f"{len(artifact.merged)} weights, names {names}"
        refuse(what, expected="weights, and distinct names of tasks", got=got, cure=cure)
    if not 0 <= artifact.seconds < math.inf:
        refuse(f"{what}, seconds", expected="a finite number >= 0", got=artifact.seconds, cure=cure)
    if (print_ := artifact.fingerprint) is not None and (print_.shape != (len(names), 10) or not finite(print_)):
        refuse(f"{what}, fingerprint", expected=f"finite [{len(names)}, 10]", got=list(print_.shape), cure=cure)
    if (lam is None) != (blocks is None):
        refuse(what, expected="coefficients with their blocks, or neither", got="one of them", cure=cure)
    if lam is None or blocks is None:
        return
    check_partition(blocks, artifact.merged, f"{what}, blocks", cure)
    if tuple(lam.shape) != (len(names), len(blocks)) or not lam.is_floating_point() or not finite(lam):
        expected = f"finite numbers [{len(names)}, {len(blocks)}]: one row per task, one column per block"
        refuse(f"{what}, coefficients", expected=expected, got=f"{lam.dtype} {list(lam.shape)}", cure=cure)
