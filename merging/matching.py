"""Whether an artifact belongs to a suite."""

from __future__ import annotations

from bounds.types import refuse
from merging.artifact import MergeArtifact
from merging.suites import Suite, alike


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
    if artifact.fingerprint is not None and suite.fingerprint is not None:
        for name, ours, theirs in zip(artifact.names, suite.fingerprint, artifact.fingerprint, strict=True):
            if not alike(ours, theirs):
                got = f"other weights, another head or other test examples of task {name!r}"
                refuse("artifact's suite", expected="the suite that it was merged from", got=got, cure=cure)
    base = suite.task_vectors.base
    wrong = sorted(
        k
        for k in {*artifact.merged, *base}
        if k not in base or k not in artifact.merged or artifact.merged[k].shape != base[k].shape
    )
    if wrong:
        got = f"others at {wrong[:3]}"
        refuse("artifact's weights", expected="the suite's parameter names and shapes", got=got, cure=cure)
