"""The model card of an exported merge: what it was made of and how, what was measured and certified, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from bounds.types import refuse
from diagnostics.report import MergeReport, Report
from diagnostics.sections.certificates import CertificateSection
from diagnostics.sections.certified import Certificate
from diagnostics.sections.token_certificates import TokenCertificates
from merging.artifact import MergeArtifact
from merging.methods import METHODS, POST_PROCESSINGS

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """λ of one task over the blocks: mean, least, largest, and the mean of each third of the network's depth."""

    task: str
    mean: float
    least: float
    largest: float
    thirds: tuple[float, ...]


def coefficients(artifact: MergeArtifact) -> list[Coefficients]:
    """Summarise λ [T, L] by task; empty where the merge has none. Exact."""
    if artifact.coefficients is None:
        return []
    rows = zip(artifact.names, artifact.coefficients, strict=True)
    return [
        Coefficients(
            task=name,
            mean=float(row.mean()),
            least=float(row.min()),
            largest=float(row.max()),
            thirds=_thirds(row),
        )
        for name, row in rows
    ]


def _thirds(row: Tensor) -> tuple[float, ...]:
    return tuple(float(part.mean()) for part in row.tensor_split(3)) if len(row) >= 3 else ()


def merge_of(report: Report, artifact: MergeArtifact, path: Path) -> MergeReport:
    """Return what a report says about this artifact.

    Raises:
        InputError: the report is about other merges.
    """
    settings = {name: _plain(value) for name, value in artifact.all_settings.items()}
    for merge in report.merges:
        same = (merge.method, dict(merge.method_settings), merge.seed) == (artifact.label, settings, artifact.seed)
        if same and dict(report.provenance.sources) == dict(artifact.sources):
            return merge
    found = ", ".join(f"{merge.method} ({merge.file})" for merge in report.merges)
    cure = "report on this artifact first: python -m diagnostics.bound_report --merged FILE"
    return refuse(f"report {path}", expected=f"one on this merge by {artifact.label}", got=f"one on {found}", cure=cure)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first(section: CertificateSection | TokenCertificates | None) -> Certificate | None:
    """Return the statement that the verdict quotes; None where nothing is certified."""
    return next(iter(section.rows), None) if section else None


def render_card(
    name: str,
    artifact: MergeArtifact,
    merge: MergeReport | None,
    *,
    recipe: str,
    precision: str,
    files: Sequence[str],
    base: str,
    notes: Mapping[str, str],
) -> str:
    """Return the card, Markdown with the header that model hubs read.

    Args:
        name: of the merge.
        artifact: the merge.
        merge: what a report says about it; None: no report was given, and the card says so.
        recipe: Python that loads the folder.
        precision: of the written weights.
        files: names of the written files.
        base: what θ_0 was read from.
        notes: task -> what is special about its head or files.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = [METHODS.get(artifact.method), *(POST_PROCESSINGS.get(name) for name in artifact.then)]
    return environment.get_template("model_card.md.j2").render(
        name=name,
        artifact=artifact,
        paper="; ".join(row.paper for row in rows if row is not None),
        merge=merge,
        certificate=_first(merge and merge.certificates),
        token_certificate=_first(merge and merge.token_certificates),
        coefficients=coefficients(artifact),
        columns=0 if artifact.coefficients is None else artifact.coefficients.shape[1],
        recipe=recipe.strip(),
        precision=precision,
        files=files,
        base=base,
        notes=notes,
    )
