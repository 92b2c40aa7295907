"""The merge artifact ``out.pt``: merged weights together with everything that explains them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging.files import write

SCHEMA = "mergebound.artifact/1"


@dataclass(frozen=True)
class MergeArtifact:
    """A merge and where it came from.

    ``merged`` is θ_m. For methods that are linear in the task vectors, ``coefficients`` is λ [T, L] and ``blocks``
    names its L columns; otherwise both are None. ``names`` are the tasks (rows of λ), ``settings`` the method's
    settings, ``sources`` file -> sha256 of θ_0, experts and data, ``history`` one list of numbers per quantity logged,
    ``seconds`` the wall time of the merge. ``used`` names every split that was handed to the method, with the number of
    fixed models that were compared on its labels (None: none, or the method does not say); no other split can have been
    seen. ``used`` is None where that was not recorded.
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


def save(artifact: MergeArtifact, path: str | Path) -> None:
    """Write an artifact atomically: the file is complete or not there (an older one stays).

    Raises:
        InputError: see :func:`merging.files.replacing`.
    """
    content = {f.name: getattr(artifact, f.name) for f in fields(artifact)}
    content["merged"] = {name: value.detach().contiguous() for name, value in artifact.merged.items()}
    content["names"] = list(artifact.names)
    if artifact.blocks is not None:
        content["blocks"] = {block: list(names) for block, names in artifact.blocks.items()}
    write(path, lambda file: torch.save(content, file))


def load(path: str | Path) -> MergeArtifact:
    """Read an artifact, executing nothing (``weights_only=True``), and check it.

    Raises:
        InputError: a missing, truncated or foreign file, an unknown schema, weights that are not finite.
    """
    path = Path(path)
    what, cure = f"artifact {path}", "make one with python -m merging --out out.pt"
    if not path.is_file():
        refuse(what, expected="a file", got="nothing there" if not path.exists() else "a folder", cure=cure)
    if not zipfile.is_zipfile(path):
        refuse(
            what,
            expected="a complete file written by torch.save",
            got=f"{path.stat().st_size} bytes of something else, or cut short",
            cure=cure,
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        refuse(what, expected="tensors and plain values only", got=str(error).splitlines()[0][:120], cure=cure)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        got = content.get("schema", "no schema") if isinstance(content, dict) else type(content).__name__
        refuse(what, expected=f"schema {SCHEMA}", got=got, cure=cure)
    content.setdefault("used", None)  # not recorded by earlier versions
    missing = sorted({f.name for f in fields(MergeArtifact)} ^ set(content))
    if missing:
        refuse(what, expected="the fields of schema " + SCHEMA, got=f"missing or unknown {missing}", cure=cure)
    for name, value in content["merged"].items():
        if not bool(torch.isfinite(value).all()):
            refuse(f"{what}, {name}", expected="finite weights", got="nan or inf", cure="merge again")
    return MergeArtifact(**content)
