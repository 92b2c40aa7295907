"""What the sections of a report share, computed when first asked for and kept piece by piece in the cache.

Everything that no merge can change (the linearised tasks, the posteriors, the teachers' scores) is computed once for
all artifacts. Every piece is one task (or posterior): an interrupted report goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from bounds.linearize import jvp_scores
from bounds.types import Blocks, Bound, Params, Sample
from bounds.validation import check_weights
from diagnostics.settings import Settings
from diagnostics.subject import Subject, check_match
from diagnostics.terms import experts as expert_side
from diagnostics.terms import linear as linear_world
from diagnostics.terms import network as network_world
from diagnostics.terms.merge import NetworkAtPoint
from diagnostics.terms.path import AtPoint, ExpertSide, Path
from diagnostics.work.cache import Cache, digest
from diagnostics.work.device import SPLITS, moved
from diagnostics.work.workers import Track, each, warm_up
from merging.params import combine, partition, subtract
from merging.rows import silent
from merging.suites import Suite
from merging.task import Task, score
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class Pieces:
    """Independent pieces of work ``function(0..count-1)``, each kept under (name, key) and its number."""

    name: str
    key: str
    function: Callable[[int], Mapping[str, Any]]
    count: int


@dataclass
class Workspace:
    """One suite, the artifacts made from it, and how to measure them. ``load`` gives the suite when it is needed.

    ``alpha`` are evaluation weights [T] (default: uniform); β is uniform. ``models_looked_at`` is the number of
    artifacts shown side by side: certificates pay for it.
    """

    subjects: Sequence[Subject]
    load: Callable[[], Suite]
    settings: Settings
    cache: Cache = field(default_factory=lambda: Cache(None))
    alpha: Sequence[float] = ()
    workers: int = 1
    device: str = "cpu"
    track: Track = silent
    _pieces: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.names)
        self.alpha = check_weights(self.alpha, count, "alpha") if self.alpha else (1 / count,) * count
        self.beta = (1 / count,) * count

    @property
    def names(self) -> Sequence[str]:
        """The tasks."""
        return self.subjects[0].artifact.names

    @cached_property
    def suite(self) -> Suite:
        """The suite, on the device, with every artifact checked against it."""
        suite = self.load()
        for subject in self.subjects:
            check_match(suite, subject.artifact)
        return suite if self.device == "cpu" else moved(suite, self.device)

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

    def key(self, *settings: str) -> str:
        """Hash of the suite's files and the named settings."""
        artifact = self.subjects[0].artifact
        return digest(artifact.suite, artifact.sources, {name: getattr(self.settings, name) for name in settings})

    def pieces(self, wanted: Pieces, what: str) -> list[Mapping[str, Any]]:
        """Return the pieces, each from the cache or computed and kept as soon as it is there."""
        return self.gather([wanted], what)[0]

    def gather(self, groups: Sequence[Pieces], what: str) -> list[list[Mapping[str, Any]]]:
        """Return the pieces of every group; what is missing is spread over the processes together.

        Processes that torchrun started go through the same program: each computes its share, and all get everything.
        """
        processes = self.cache.processes
        todo: list[tuple[Pieces, int]] = []
        kept: dict[tuple[str, str], list[Any]] = {}
        for group in groups:
            place = group.name, group.key
            if place not in self._pieces and place not in kept:
                kept[place] = [self.cache.load(f"{group.name}{i}", group.key) for i in range(group.count)]
                todo += [(group, i) for i, piece in enumerate(kept[place]) if piece is None]
        if todo:
            self.prepare()
        own = [job for job in range(len(todo)) if processes.mine(job)]

        def compute() -> dict[int, Mapping[str, Any]]:
            found = {}
            results = each(
                lambda job: todo[job][0].function(todo[job][1]), own, workers=self.workers, track=self.track, what=what
            )
            for job, result in zip(own, results, strict=True):
                group, i = todo[job]
                self.cache.save(f"{group.name}{i}", group.key, result)
                found[job] = result
            return found

        for share in processes.gather(compute):
            for job, result in share.items():
                group, i = todo[job]
                if not processes.mine(job):
                    self.cache.save(f"{group.name}{i}", group.key, result)
                kept[group.name, group.key][i] = result
        self._pieces.update(kept)
        return [self._pieces[group.name, group.key] for group in groups]

    # What no merge can change ----------------------------------------------------------------------------------------

    def facts(self) -> list[Mapping[str, Any]]:
        """Per task: labels of test and validation, number of classes, split sizes."""
        return self.pieces(Pieces("facts", self.key(), self._facts, len(self.names)), "labels")

    def _facts(self, index: int) -> Mapping[str, Any]:
        task = self.suite.tasks[index]
        return {
            "test_labels": _labels(task.test),
            "validation_labels": _labels(task.validation),
            "classes": len(task.class_names),
            "sizes": {split: len(getattr(task, split)) for split in SPLITS},
        }

    def teachers(self) -> list[Mapping[str, Any]]:
        """Per task: its facts, test scores of pretrained model and expert, the expert's on validation."""
        pretrained, experts, *_ = self._scores()
        return [
            {**fact, "pretrained": base["test"], "expert": expert["test"], "validation": expert["validation"]}
            for fact, base, expert in zip(self.facts(), pretrained, experts, strict=True)
        ]

    def merged(self, subject: Subject) -> list[Mapping[str, Any]]:
        """Per task: the merged model's scores on test and validation."""
        return self._scores()[2 + list(self.subjects).index(subject)]

    def _scores(self) -> list[list[Mapping[str, Any]]]:
        """Scores of pretrained model, experts and all merges, per task, in one round of work."""
        both = ("test", "validation")
        models: list[tuple[str, str, Sequence[str], Callable[[int], Params]]] = [
            ("pretrained", self.key(), ("test",), lambda _: self.vectors.base),
            ("expert", self.key(), both, lambda index: self.vectors.expert(index)),
        ]
        models += [
            ("merged", digest(self.key(), s.key), both, lambda _, subject=s: self.weights(subject))
            for s in self.subjects
        ]

        def scores(index: int, splits: Sequence[str], theta: Callable[[int], Params]) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            return {split: _scores(task, theta(index), getattr(task, split)) for split in splits}

        groups = [
            Pieces(name, key, partial(scores, splits=splits, theta=theta), len(self.names))
            for name, key, splits, theta in models
        ]
        return self.gather(groups, "scores of all models")

    @cached_property
    def trivial_risk(self) -> float:
        """Σ_t α_t ln C_t: the cross-entropy of knowing nothing."""
        return sum(a * math.log(t["classes"]) for a, t in zip(self.alpha, self.facts(), strict=True))

    @cached_property
    def centre(self) -> Params:
        """θ_β = θ_0 + Σ_j β_j τ_j."""
        centre = self.vectors.base
        for delta, weight in zip(self.vectors.deltas, self.beta, strict=True):
            centre = combine(centre, delta, weight)
        return centre

    @cached_property
    def experts(self) -> ExpertSide:
        """All that (5) knows before a merge is given."""
        settings, vectors, count = self.settings, self.vectors, len(self.names)
        pieces, kernels = self.gather(self._linearisation(), "linearising at θ_0")
        worlds = [
            linear_world.LinearTask(
                held_out=self.held_out(task),
                kernel=torch.cat([part["kernel"] for part in kernels[i * PARTS : (i + 1) * PARTS]]),
                **{name: pieces[i][name] for name in _WORLD},
            )
            for i, task in enumerate(self.suite.tasks)
        ]
        sizes = [len(task.train) for task in self.suite.tasks]
        linear, posteriors = expert_side.linearised(worlds, vectors, sizes, self.blocks, settings)
        sigmas = [statistics.sigma for statistics in linear.statistics]
        key = digest(self.key("held_out", "kernel", "train", "seed", "weight_draws"), sigmas)
        drawn = self.pieces(Pieces("draws", key, lambda j: self._draw(j, sigmas), count), "sampling posteriors")
        draws = network_world.PosteriorDraws(
            [[piece["scores"][i] for piece in drawn] for i in range(count)],
            [piece["gradients"] for piece in drawn],
            [world.labels for world in worlds],
            [piece["own"] for piece in drawn],
        )
        assumed = expert_side.assumed_linear(linear, draws, sizes)
        risk = self.trivial_risk
        return ExpertSide(
            worlds, posteriors, draws, linear, assumed, self.centre, self.alpha, self.beta, settings.delta, risk
        )

    def _linearisation(self) -> list[Pieces]:
        """Return the linearised tasks: Jacobian products, and kernels in PARTS parts, which take longest."""
        settings, key, count = self.settings, self.key("held_out", "kernel", "train", "seed"), len(self.names)

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

        return [Pieces("products", key, products, count), Pieces("kernel", key, kernel, count * PARTS)]

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
        own = _scores(tasks[index], self.vectors.expert(index), train)
        return {
            "scores": [drawn.scores[i][index] for i in range(count)],
            "gradients": drawn.gradients[index],
            "own": linear_world.losses(own, _labels(train)),
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

        return Pieces("tangents", digest(self.key("held_out", "seed"), key), one, len(self.names))

    def path(self, displacement: Params, tangents: Sequence[Tensor]) -> Path:
        """Return the path θ_0 + s·d, given J(x)d of every task."""
        worlds = [w.towards(along) for w, along in zip(self.experts.worlds, tangents, strict=True)]
        return Path(self.suite, self.experts, worlds, displacement)

    def at_merge(self, subject: Subject) -> tuple[tuple[Bound, ...], AtPoint]:
        """Return the three readings at θ_m, and what they were made of."""

        def network(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            theta, inputs = self.weights(subject), self.held_out(task).inputs
            scores, tangents = network_world.along(task.forward, theta, inputs, self.centre)
            return {"scores": scores, "tangents": tangents}

        key, displacement = digest(self.key("held_out", "seed"), subject.key), self.displacement(subject)
        *_, at, along = self.gather(
            [
                *self._linearisation(),
                Pieces("network", key, network, len(self.names)),
                self.tangents(subject.key, displacement),
            ],
            f"{subject.label}: linearising, and the network at θ_m",
        )
        point = NetworkAtPoint([piece["scores"] for piece in at], [piece["tangents"] for piece in at])
        return self.path(displacement, [piece["tangents"] for piece in along]).bounds(1.0, point)


_WORLD = ("scores0", "tangents", "train_scores", "train_labels", "train_trace")
PARTS = 2
"""Parts of a task's held-out examples whose kernels are separate pieces of work."""


def _scores(task: Task, params: Params, sample: Sample) -> Tensor:
    return score(task.forward, params, sample.inputs).double().cpu()


def _labels(sample: Sample) -> Tensor:
    assert sample.labels is not None
    return sample.labels.cpu()
