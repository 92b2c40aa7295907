"""Scores of all models on the tasks' splits: pretrained, experts, merges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from bounds.types import Params, Sample
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.work.reads import made_once
from diagnostics.workspace.tokens import Tokens
from merging.task import Split, Task, score_task


class Scores(Tokens):
    """What models say on whole splits; every piece is one task under one model."""

    def teachers(self) -> list[Mapping[str, Any]]:
        """Per task: its facts, scores of pretrained model and expert on test and (where there is one) validation."""
        pretrained, experts, *_ = self._scores()
        return [
            {
                **fact,
                "pretrained": base["test"],
                "pretrained_validation": base.get("validation"),
                "expert": expert["test"],
                "validation": expert.get("validation"),
            }
            for fact, base, expert in zip(self.facts(), pretrained, experts, strict=True)
        ]

    def merged(self, subject: Subject) -> list[Mapping[str, Any]]:
        """Per task: the merged model's scores on test and validation."""
        return self._scores()[2 + list(self.subjects).index(subject)]

    def experts_on_validation(self) -> list[list[Tensor]]:
        """Per task: the scores of every expert on its validation split, with this task's head."""
        count = len(self.names)

        def one(index: int) -> Mapping[str, Any]:
            task, others = self.suite.tasks[index], [j for j in range(count) if j != index]
            sample = task.validation
            return {str(j): scores_of(task, self.vectors.expert(j), sample, "validation", "expert") for j in others}

        pieces = self.pieces(Pieces("every expert", (), one, count), "every expert, validation splits")
        own = [{str(index): teacher["validation"]} for index, teacher in enumerate(self.teachers())]
        whole = [{**piece, **mine} for piece, mine in zip(pieces, own, strict=True)]
        return [[scores[str(j)] for j in range(count)] for scores in whole]

    def _scores(self) -> list[list[Mapping[str, Any]]]:
        """Scores of pretrained model, experts and all merges, per task, in one round of work."""
        both: tuple[Split, ...] = ("test", "validation")
        models: list[tuple[str, str, Sequence[Split], Callable[[int], Params]]] = [
            ("pretrained", "", both, lambda _: self.vectors.base),
            ("expert", "", both, lambda index: self.vectors.expert(index)),
        ]
        models += [("merged", s.key, both, lambda _, subject=s: self.weights(subject)) for s in self.subjects]

        def scores(
            index: int, splits: Sequence[Split], theta: Callable[[int], Params], model: str
        ) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            there: list[Split] = [split for split in splits if split in task.splits]
            return {split: scores_of(task, theta(index), getattr(task, split), split, model) for split in there}

        groups = [
            Pieces(name, of, partial(scores, splits=splits, theta=theta, model=name), len(self.names))
            for name, of, splits, theta in models
        ]
        return self.gather(groups, "scores of all models")

    @made_once
    def trivial_risk(self) -> float:
        """Σ_t α_t ln C_t: the cross-entropy of knowing nothing."""
        return sum(a * math.log(t["classes"]) for a, t in zip(self.alpha, self.facts(), strict=True))


def scores_of(task: Task, params: Params, sample: Sample, split: Split, model: str) -> Tensor:
    """Return the scores [N, C] of a model on a split, float64 on the CPU."""
    return score_task(task, params, sample.inputs, split, model).double().cpu()
