"""What a report is about: an artifact with its label."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from diagnostics.work.cache import digest, digest_params
from merging.artifact import MergeArtifact
from merging.closed_form.scale import SEARCH_SECONDS


@dataclass(frozen=True)
class Subject:
    """One artifact of a report: its label (a column's head), the file it came from, and a hash of what it says."""

    label: str
    file: str
    artifact: MergeArtifact

    @cached_property
    def key(self) -> str:
        """Hash of all that the artifact says, but for what cannot change a number: its times and versions."""
        said = {f.name: getattr(self.artifact, f.name) for f in fields(self.artifact)}
        extra = {name: said.pop(name) for name in ("coefficients", "fingerprint")}
        tensors = {name: value for name, value in extra.items() if value is not None}
        weights = digest_params(said.pop("merged")), digest_params(tensors)
        said["history"] = {name: values for name, values in said["history"].items() if name != SEARCH_SECONDS}
        return digest(*weights, {name: value for name, value in said.items() if name not in ("seconds", "versions")})
