"""The workspace of a report: what its sections share, with what belongs to one merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bounds.distillation import Divergences, divergences
from bounds.linearize import jvp_scores
from bounds.types import Bound, Params
from diagnostics.subject import Subject
from diagnostics.terms import network as network_world
from diagnostics.terms.merge import NetworkAtPoint
from diagnostics.terms.path import AtPoint, Path
from diagnostics.work.pieces import Pieces
from diagnostics.workspace.experts import BeforeMerging
from merging.params import subtract


class Workspace(BeforeMerging):
    """One suite, the artifacts made from it, and how to measure them."""

    _displacement: tuple[str, Params] | None = None

    def displacement(self, subject: Subject) -> Params:
        """θ_m - θ_0. That of the last merge asked for is kept: several at a time would be several networks."""
        if self._displacement is None or self._displacement[0] != subject.key:
            self._displacement = subject.key, subtract(self.weights(subject), self.vectors.base)
        return self._displacement[1]

    def imitation(self, subject: Subject) -> list[Divergences]:
        """Per task: what tells the merge from the expert on every example of the test split; no labels."""
        temperature = float(subject.artifact.settings.get("temperature", 1.0))
        if self.scored == "position":
            return self.token_imitation(subject, temperature)
        pairs = zip(self.teachers(), self.merged(subject), strict=True)
        return [divergences(teacher["expert"], merged["test"], temperature) for teacher, merged in pairs]

    def tangents(self, key: str, displacement: Params) -> Pieces:
        """J(x)d of the held-out examples, per task, kept under ``key``, which must identify d."""

        def one(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            inputs = self.held_out(task).inputs
            return {
                "tangents": jvp_scores(task.forward, self.vectors.base, inputs, [displacement])[1][0].double().cpu()
            }

        return Pieces("tangents", key, one, len(self.names))

    def path(self, displacement: Params, tangents: Sequence[Tensor]) -> Path:
        """Return the path θ_0 + s·d, given J(x)d of all held-out examples of every task."""
        side, reported = self.experts.on_reported(), self.experts.reported
        worlds = [w.towards(along[reported]) for w, along in zip(side.worlds, tangents, strict=True)]
        return Path(self.suite, side, worlds, displacement)

    def merge_point(self, subject: Subject) -> tuple[list[Tensor], NetworkAtPoint]:
        """Return J(x)(θ_m - θ_0) of all held-out examples of every task, and the network there at θ_m."""

        def network(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            theta, inputs = self.weights(subject), self.held_out(task).inputs
            scores, tangents = network_world.along(task, theta, inputs, centre.take())
            return {"scores": scores, "tangents": tangents}

        self._check_bound()
        displacement, centre = self.displacement(subject), self.reads.make(lambda: self.centre)
        *_, at, along = self.gather(
            [
                *self._linearisation(),
                Pieces("network", subject.key, network, len(self.names)),
                self.tangents(subject.key, displacement),
            ],
            f"{subject.label}: linearising, and the network at θ_m",
        )
        point = NetworkAtPoint([piece["scores"] for piece in at], [piece["tangents"] for piece in at])
        return [piece["tangents"] for piece in along], point

    def at_merge(self, subject: Subject) -> tuple[tuple[Bound, ...], AtPoint]:
        """Return the three readings at θ_m, and what they were made of."""
        along, point = self.merge_point(subject)
        return self.path(self.displacement(subject), along).bounds(1.0, point.part(self.reported))
