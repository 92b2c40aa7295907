"""What (5) knows before a merge is given: linearised tasks, posteriors, anchors, the network at sampled weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bounds.theorems import AnchorStatistics, Experts, Weights
from bounds.types import Params
from diagnostics.terms import experts as expert_side
from diagnostics.terms import linear as linear_world
from diagnostics.terms import network as network_world
from diagnostics.terms.anchors import Anchor, Choice, anchor_at, best_of
from diagnostics.terms.experts import LinearPosteriors
from diagnostics.terms.linear import LinearTask
from diagnostics.terms.path import ExpertSide
from diagnostics.work.pieces import Pieces
from diagnostics.work.reads import made_once
from diagnostics.workspace.scores import Scores, scores_of
from merging.params import combine

PARTS = 2
"""Parts of a task's held-out examples that are separate pieces of work."""


class BeforeMerging(Scores):
    """The experts' side of (5); no merge can change it."""

    @property
    def beta(self) -> Sequence[float]:
        """Weights of the experts [T]."""
        self.reads.note(("beta",))
        if self._beta is not None:
            return self._beta
        return tuple(float(j == self.vertex.place) for j in range(len(self.names)))

    @property
    def vertex(self) -> Choice:
        """The expert whose own bound has the least slack by one half of the held-out examples."""
        return self.keeper.data(Choice, "vertex", (), best_of, lambda: best_of(self.anchors([1.0])[0]))

    @made_once
    def centre(self) -> Params:
        """θ_β = θ_0 + Σ_j β_j τ_j."""
        centre = self.vectors.base
        for delta, weight in zip(self.vectors.deltas, self.beta, strict=True):
            centre = combine(centre, delta, weight)
        return centre

    @made_once
    def linearised(self) -> tuple[list[LinearTask], Experts[AnchorStatistics], LinearPosteriors, list[int]]:
        """Return the linearised tasks, the experts' posteriors there, draws from them, and |S_j|; β is in none."""
        self._check_bound()
        training, parts = self.gather(self._linearisation(), "linearising at θ_0")
        worlds = [
            LinearTask(
                held_out=self.held_out(task),
                **{name: torch.cat([part[name] for part in own], dim=int(name == "tangents")) for name in own[0]},
                **training[i],
            )
            for i, task in enumerate(self.suite.tasks)
            for own in [parts[i * PARTS : (i + 1) * PARTS]]
        ]
        sizes = [len(task.train) for task in self.suite.tasks]
        sides = expert_side.linearised(worlds, self.vectors, sizes, self.blocks, self.settings)
        return (worlds, *sides, sizes)

    def anchors(self, scales: Sequence[float]) -> list[list[Anchor]]:
        """Return, for every c, the experts' own bounds at θ_0 + cτ_j, example by example."""
        made, settings = self.reads.make(lambda: self.linearised), self.settings

        def one(j: int, c: float) -> Mapping[str, Any]:
            worlds, linear, *_ = made.take()
            return vars(anchor_at(worlds[j], j, c, linear.statistics[j], linear.prices(settings.delta)[j], settings))

        groups = [Pieces("anchor", c, partial(one, c=c), len(self.names)) for c in scales]
        return [[Anchor(**piece) for piece in pieces] for pieces in self.gather(groups, "slack of the anchors")]

    @made_once
    def experts(self) -> ExpertSide:
        """All that (5) knows before a merge is given."""
        worlds, linear, posteriors, sizes = self.linearised
        settings, count = self.settings, len(self.names)
        sigmas = [statistics.sigma for statistics in linear.statistics]
        drawn = self.pieces(Pieces("draws", sigmas, lambda j: self._draw(j, sigmas), count), "sampling posteriors")
        draws = network_world.PosteriorDraws(
            [[piece["scores"][i] for piece in drawn] for i in range(count)],
            [piece["gradients"] for piece in drawn],
            [world.labels for world in worlds],
            [piece["own"] for piece in drawn],
        )
        assumed = expert_side.assumed_linear(linear, draws, sizes, settings.delta)
        return ExpertSide(
            worlds=worlds,
            posteriors=posteriors,
            draws=draws,
            linear=linear,
            assumed=assumed,
            centre=self.centre,
            weights=Weights(self.alpha, self.beta),
            delta=settings.delta,
            trivial_risk=self.trivial_risk,
            reported=self.reported,
        )

    @property
    def reported(self) -> slice:
        """The held-out examples that the bound's terms are measured on: not those that β was chosen on."""
        self.reads.note(("beta",))
        return slice(None) if self._beta else slice(expert_side.REPORTING, None, 2)

    def _check_bound(self) -> None:
        self.check_labels("train", "bound (5), which rests on the experts' own samples")
        self.check_labels("test", "bound (5), whose terms are measured on held-out examples")

    def traces(self) -> list[Tensor]:
        """Per task: tr K_b(x, x) [M, B] of training examples, per block; no labels."""
        training, _ = self._linearisation()
        return [piece["train_trace"] for piece in self.pieces(training, "linearising at θ_0")]

    def _linearisation(self) -> list[Pieces]:
        """Return the linearised tasks: training examples, and held-out examples in PARTS parts, which take longest."""
        settings, count = self.settings, len(self.names)
        self.check_splits("train", "the linearised experts, which rest on their own samples")

        def training(index: int) -> Mapping[str, Any]:
            return linear_world.on_training(
                self.suite.tasks[index],
                self.vectors.deltas[index],
                self.vectors.base,
                self.blocks,
                kernel=settings.kernel,
                train=settings.train,
                seed=settings.seed,
            )

        def held_out(piece: int) -> Mapping[str, Any]:
            task = self.suite.tasks[piece // PARTS]
            sample = self.held_out(task)
            size, part = -(-len(sample) // PARTS), piece % PARTS
            few = sample.take(slice(part * size, (part + 1) * size))
            return linear_world.on_held_out(task, few, self.vectors.base, self.vectors.deltas, self.blocks)

        return [Pieces("training", (), training, count), Pieces("held out", (), held_out, count * PARTS)]

    def _draw(self, index: int, sigmas: Sequence[Sequence[float]]) -> Mapping[str, Any]:
        settings, tasks, count = self.settings, self.suite.tasks, len(self.names)
        drawn = network_world.sample_posteriors(
            tasks,
            [self.held_out(task) for task in tasks],
            [self.vectors.expert(index)] * count,
            sigmas,
            self.blocks,
            draws=settings.weight_draws,
            seed=settings.seed + index,
            posteriors=[index],
        )
        train = linear_world.subsample(tasks[index].train, settings.train, settings.seed)
        own = scores_of(tasks[index], self.vectors.expert(index), train, "train", "expert")
        assert train.labels is not None, "checked before anything was drawn"
        return {
            "scores": [drawn.scores[i][index] for i in range(count)],
            "gradients": drawn.gradients[index],
            "own": linear_world.losses(own, train.labels.cpu()),
        }
