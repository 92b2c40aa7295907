"""What a report is about: an artifact with its label, and whether it belongs to a suite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bounds.types import refuse
from diagnostics.work.cache import digest, digest_params
from merging.artifact import MergeArtifact
from merging.suites import Suite


@dataclass(frozen=True)
class Subject:
    """One artifact of a report: its label (a column's head), the file it came from, and a hash of what it says."""

    label: str
    file: str
    artifact: MergeArtifact

    @cached_property
    def key(self) -> str:
        """Hash of the merged weights, the coefficients and how they were made."""
        artifact = self.artifact
        lam = {} if artifact.coefficients is None else {"λ": artifact.coefficients}
        described = (artifact.method, artifact.suite, artifact.settings, artifact.sources, artifact.history)
        return digest(digest_params(artifact.merged), digest_params(lam), *described)


def check_match(suite: Suite, artifact: MergeArtifact) -> None:
    """Check that an artifact was made from this very suite.

    Raises:
        InputError: other tasks, other files, other parameter names or shapes.
    """
    cure = "report on it with the suite it was merged from"
    if list(artifact.names) != list(suite.task_vectors.names):
        refuse("artifact's tasks", expected=list(suite.task_vectors.names), got=list(artifact.names), cure=cure)
    changed = sorted(k for k in {*artifact.sources, *suite.sources} if artifact.sources.get(k) != suite.sources.get(k))
    if changed:
        got = f"others for {changed[:3]}"
        refuse("artifact's sources", expected="the files of the suite, by sha256", got=got, cure=cure)
    base = suite.task_vectors.base
    wrong = sorted(
        k
        for k in {*artifact.merged, *base}
        if k not in base or k not in artifact.merged or artifact.merged[k].shape != base[k].shape
    )
    if wrong:
        got = f"others at {wrong[:3]}"
        refuse("artifact's weights", expected="the suite's parameter names and shapes", got=got, cure=cure)
