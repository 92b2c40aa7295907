"""What the sections of a report share, computed when first asked for and kept piece by piece in the cache.

Everything that no merge can change (the linearised tasks, the posteriors, the teachers' scores) is computed once for
all artifacts. Every piece is one task (or posterior): an interrupted report goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from bounds.linearize import jvp_scores
from bounds.theorems import AnchorStatistics, Experts, Weights
from bounds.types import Blocks, Bound, Params, Sample
from bounds.validation import check_weights
from diagnostics.settings import Settings, expert_weights
from diagnostics.subject import Subject
from diagnostics.terms import experts as expert_side
from diagnostics.terms import linear as linear_world
from diagnostics.terms import network as network_world
from diagnostics.terms.anchors import Anchor, Choice, anchor_at, best_of
from diagnostics.terms.experts import LinearPosteriors
from diagnostics.terms.linear import LinearTask
from diagnostics.terms.merge import NetworkAtPoint
from diagnostics.terms.path import AtPoint, ExpertSide, Path
from diagnostics.work.cache import Cache, digest
from diagnostics.work.device import moved
from diagnostics.work.pieces import Keeper, Pieces
from diagnostics.work.reads import Noted, Reads, made_once, unnoted
from diagnostics.work.workers import Track, warm_up
from merging.matching import check_match
from merging.params import combine, partition, subtract
from merging.rows import silent
from merging.suites import Suite
from merging.task import Split, Task, check_splits, refuse_unlabelled, score_task
from merging.task_vectors import TaskVectors


class Workspace:
    """One suite, the artifacts made from it, and how to measure them.

    ``settings``, ``alpha`` and ``models_looked_at`` note in ``reads`` that they were looked at: kept results rest on
    what was noted while they were computed.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        load: Callable[[], Suite],
        settings: Settings,
        cache: Cache | None = None,
        alpha: Sequence[float] = (),
        workers: int = 1,
        device: str = "cpu",
        track: Track = silent,
        *,
        made_of_files: bool = False,
    ) -> None:
        """Check α; load nothing.

        Args:
            subjects: the artifacts, at least one, all of one suite.
            load: gives the suite when it is needed.
            settings: how much to measure.
            cache: where results are kept (default: nowhere).
            alpha: evaluation weights [T] (default: uniform); β is among the settings.
            workers: processes.
            device: device of PyTorch.
            track: shows progress.
            made_of_files: whether the suite is made of nothing but the files whose sha256 the artifacts list. Those
                then identify it, and a cached report does not load it; any other suite is identified by its content.

        Raises:
            InputError: weights α or β off the simplex.
        """
        settings = unnoted(settings)
        self.subjects, self.load, self.plain_settings = subjects, load, settings
        self.workers, self.device, self.made_of_files = workers, device, made_of_files
        count = len(self.names)
        self._alpha = check_weights(alpha, count, "alpha") if alpha else (1 / count,) * count
        self._beta = expert_weights(settings.beta, count)
        fields = {**asdict(settings), "alpha": self._alpha, "models_looked_at": len(subjects)}
        self.reads = Reads(fields.__getitem__)
        self.settings = cast(Settings, Noted(settings, self.reads))
        self.keeper = Keeper(
            cache or Cache(None), self.reads, lambda: self.identity, self.prepare, workers=workers, track=track
        )
        self.pieces, self.gather = self.keeper.pieces, self.keeper.gather

    @property
    def alpha(self) -> Sequence[float]:
        """Evaluation weights [T]."""
        self.reads.note(("alpha",))
        return self._alpha

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

    @property
    def models_looked_at(self) -> int:
        """The number of artifacts shown side by side: certificates pay for it."""
        self.reads.note(("models_looked_at",))
        return len(self.subjects)

    @property
    def cache(self) -> Cache:
        """Where results are kept."""
        return self.keeper.cache

    @property
    def names(self) -> Sequence[str]:
        """The tasks."""
        return self.subjects[0].artifact.names

    @cached_property
    def identity(self) -> str:
        """Hash of what the suite is: its files, or, unless it is made of files alone, its content."""
        artifact = self.subjects[0].artifact
        if self.made_of_files:
            bare = () if self.plain_settings.labels else ("without labels",)  # what rests on labels is another thing
            return digest("files", artifact.suite, artifact.sources, *bare)
        return digest("content", self.loaded.content)

    @cached_property
    def loaded(self) -> Suite:
        """The suite where it was loaded, on the CPU, with every artifact checked against it: merges are made there."""
        suite = self.load() if self.plain_settings.labels else self.load().without_labels()
        for subject in self.subjects:
            check_match(suite, subject.artifact)
        return suite

    @cached_property
    def suite(self) -> Suite:
        """The suite, on the device, with every artifact checked against it."""
        return self.loaded if self.device == "cpu" else moved(self.loaded, self.device)

    def prepare(self) -> None:
        """Load here what processes would otherwise load one by one after they are forked."""
        _ = self.suite
        if self.workers > 1:
            warm_up()

    @property
    def vectors(self) -> TaskVectors:
        """θ_0 and the task vectors."""
        return self.suite.task_vectors

    @cached_property
    def blocks(self) -> Blocks:
        """The partition of the posteriors' σ: one block per layer, with stem and top."""
        return partition(self.vectors.base, "block")

    def weights(self, subject: Subject) -> Params:
        """θ_m on the device."""
        return {name: subject.artifact.merged[name].to(self.device) for name in self.vectors.base}

    def held_out(self, task: Task) -> Sample:
        """Return the test examples that everything but the accuracy rests on."""
        return linear_world.subsample(task.test, self.settings.held_out, self.settings.seed)

    def check_suite(self) -> None:
        """Load the suite and check every artifact against it, also where all results are kept.

        Raises:
            InputError: there is none, or it is another one.
        """
        _ = self.loaded

    def check_splits(self, split: Split, what: str) -> None:
        """Check that every task has a split that ``what`` needs.

        Raises:
            InputError: one has not.
        """
        check_splits(self.suite.tasks, {split}, what)

    def check_labels(self, split: Split, what: str) -> None:
        """Check that every task has a split with labels, which ``what`` needs; a suite whose facts are kept stays away.

        Raises:
            InputError: one has not, or no label is to be looked at.
        """
        for name, fact in zip(self.names, self.facts(), strict=True):
            if split not in fact["sizes"]:
                self.check_splits(split, what)
            if split not in fact["labelled"]:
                unread = "report without --no-labels, or leave the section out"
                refuse_unlabelled(name, split, what, *([] if self.settings.labels else [unread]))

    # What no merge can change ----------------------------------------------------------------------------------------

    def facts(self) -> list[Mapping[str, Any]]:
        """Per task: labels of test and validation (None: there are none), classes, split sizes, labelled splits."""
        return self.pieces(Pieces("facts", (), self._facts, len(self.names)), "labels")

    def _facts(self, index: int) -> Mapping[str, Any]:
        task = self.suite.tasks[index]
        return {
            "test_labels": _labels(task.test),
            "validation_labels": _labels(task.validation) if "validation" in task.splits else None,
            "labelled": [split for split in task.splits if getattr(task, split).labels is not None],
            "classes": len(task.class_names),
            "learned_head": task.name in self.suite.learned_heads,
            "sizes": {split: len(getattr(task, split)) for split in task.splits},
        }

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
            return {str(j): _scores(task, self.vectors.expert(j), sample, "validation", "expert") for j in others}

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
            return {split: _scores(task, theta(index), getattr(task, split), split, model) for split in there}

        groups = [
            Pieces(name, of, partial(scores, splits=splits, theta=theta, model=name), len(self.names))
            for name, of, splits, theta in models
        ]
        return self.gather(groups, "scores of all models")

    @made_once
    def trivial_risk(self) -> float:
        """Σ_t α_t ln C_t: the cross-entropy of knowing nothing."""
        return sum(a * math.log(t["classes"]) for a, t in zip(self.alpha, self.facts(), strict=True))

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
        pieces, kernels = self.gather(self._linearisation(), "linearising at θ_0")
        worlds = [
            LinearTask(
                held_out=self.held_out(task),
                kernel=torch.cat([part["kernel"] for part in kernels[i * PARTS : (i + 1) * PARTS]]),
                **{name: pieces[i][name] for name in _WORLD},
            )
            for i, task in enumerate(self.suite.tasks)
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
        products, _ = self._linearisation()
        return [piece["train_trace"] for piece in self.pieces(products, "linearising at θ_0")]

    def _linearisation(self) -> list[Pieces]:
        """Return the linearised tasks: Jacobian products, and kernels in PARTS parts, which take longest."""
        settings, count = self.settings, len(self.names)
        self.check_splits("train", "the linearised experts, which rest on their own samples")

        def products(index: int) -> Mapping[str, Any]:
            return linear_world.products(
                self.suite.tasks[index],
                self.held_out(self.suite.tasks[index]),
                index,
                self.vectors.base,
                self.vectors.deltas,
                self.blocks,
                kernel=settings.kernel,
                train=settings.train,
                seed=settings.seed,
            )

        def kernel(piece: int) -> Mapping[str, Any]:
            task = self.suite.tasks[piece // PARTS]
            sample = self.held_out(task)
            size, part = -(-len(sample) // PARTS), piece % PARTS
            few = sample.take(slice(part * size, (part + 1) * size))
            return {"kernel": linear_world.kernels(task, few, self.vectors.base, self.blocks)}

        return [Pieces("products", (), products, count), Pieces("kernel", (), kernel, count * PARTS)]

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
        own = _scores(tasks[index], self.vectors.expert(index), train, "train", "expert")
        assert train.labels is not None, "checked before anything was drawn"
        return {
            "scores": [drawn.scores[i][index] for i in range(count)],
            "gradients": drawn.gradients[index],
            "own": linear_world.losses(own, train.labels.cpu()),
        }

    # What belongs to one merge ---------------------------------------------------------------------------------------

    def displacement(self, subject: Subject) -> Params:
        """θ_m - θ_0."""
        return subtract(self.weights(subject), self.vectors.base)

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


_WORLD = ("scores0", "tangents", "train_scores0", "train_scores", "train_labels", "train_trace")
PARTS = 2
"""Parts of a task's held-out examples whose kernels are separate pieces of work."""


def _scores(task: Task, params: Params, sample: Sample, split: Split, model: str) -> Tensor:
    return score_task(task, params, sample.inputs, split, model).double().cpu()


def _labels(sample: Sample) -> Tensor | None:
    return None if sample.labels is None else sample.labels.cpu()
