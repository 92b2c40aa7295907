"""Figures of all models where every position has scores: sums per example, of pretrained model, experts and merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from bounds.distillation import Divergences
from bounds.types import Params, Sample
from diagnostics.settings import FLOOR
from diagnostics.subject import Subject
from diagnostics.terms import tokens
from diagnostics.terms.tokens import Sums
from diagnostics.work.pieces import Pieces
from diagnostics.workspace.shared import Shared
from merging.task import Split

LABELLED: tuple[Split, ...] = ("test", "validation")
"""The splits that models are measured on, where they have labels."""


class Tokens(Shared):
    """Sums per example; every piece is one task under one model."""

    def tokens(self, subject: Subject) -> list[Mapping[str, Mapping[str, Sums]]]:
        """Per task: model (pretrained, expert, merged) -> split -> sums."""
        models: Mapping[str, tuple[str, Callable[[int], Params]]] = {
            "pretrained": ("", lambda _: self.vectors.base),
            "expert": ("", self._expert),
            "merged": (subject.key, lambda _: self.weights(subject)),
        }

        def one(index: int, model: str, theta: Callable[[int], Params]) -> Mapping[str, Any]:
            task, found = self.suite.tasks[index], {}
            for split in LABELLED:
                sample = getattr(task, split) if split in task.splits else None
                if sample is not None and sample.labels is not None:
                    found[split] = dict(tokens.figures(task, theta(index), sample, split, model, FLOOR))
            return found

        groups = [
            Pieces(f"tokens of {name}", of, partial(one, model=name, theta=theta), len(self.names))
            for name, (of, theta) in models.items()
        ]
        found = self.gather(groups, "scores at every position of all models")
        return [dict(zip(models, row, strict=True)) for row in zip(*found, strict=True)]

    def token_imitation(self, subject: Subject, temperature: float) -> list[Divergences]:
        """Per task: what tells the merge from the expert on the test split, means per example; no labels."""

        def one(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            merged = self.weights(subject)
            return vars(tokens.imitation(task, self._expert(index), merged, task.test, "test", temperature))

        pieces = Pieces("imitation of tokens", (subject.key, temperature), one, len(self.names))
        return [Divergences(**piece) for piece in self.pieces(pieces, f"{subject.label}: merge against experts")]

    def experts_tokens(self) -> list[list[Sums]]:
        """Per task: sums of every expert on its validation split."""

        def one(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            return {
                str(j): dict(tokens.figures(task, self._expert(j), task.validation, "validation", "expert", FLOOR))
                for j in range(len(self.names))
            }

        pieces = self.pieces(
            Pieces("tokens of every expert", (), one, len(self.names)), "every expert, validation splits"
        )
        return [[piece[str(j)] for j in range(len(self.names))] for piece in pieces]

    def pilot_tokens(self, subject: Subject, positions: Sequence[Tensor]) -> list[Mapping[str, Sums]]:
        """Per task: sums on calibration inputs at ``positions``, labels drawn from the expert.

        Of the pretrained model, the merge and each expert, whose name is its number; the task's own is ``expert``.
        """

        def one(index: int) -> Mapping[str, Any]:
            task, vectors = self.suite.tasks[index], self.vectors
            inputs = Sample(task.calibration.inputs).take(positions[index].to(self.device))
            drawn = tokens.labelled_by(task, self._expert(index), inputs, "calibration", self.settings.seed + index)
            models = {"pretrained": vectors.base, "merged": self.weights(subject)}
            models |= {str(j): self._expert(j) for j in range(len(self.names))}
            return {
                name: dict(tokens.figures(task, theta, drawn, "calibration", name, FLOOR))
                for name, theta in models.items()
            }

        where = [p.tolist() for p in positions]
        pieces = self.pieces(
            Pieces("tokens of the pilot", (subject.key, where), one, len(self.names)), f"{subject.label}: pilot inputs"
        )
        return [{**piece, "expert": piece[str(index)]} for index, piece in enumerate(pieces)]

    def _expert(self, index: int) -> Params:
        return self.vectors.expert(index)
