"""What the sections of a report share, computed when first asked for and kept piece by piece in the cache.

Everything that no merge can change (the linearised tasks, the posteriors, the teachers' scores) is computed once for
all artifacts. Every piece is one task (or posterior): an interrupted report goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bounds.linearize import jvp_scores
from bounds.types import Blocks, Bound, Params, Sample, refuse
from bounds.validation import check_weights
from diagnostics import anchors as expert_side
from diagnostics import linear_world, network_world
from diagnostics.cache import Cache, digest, digest_params
from diagnostics.merge_terms import NetworkAtPoint
from diagnostics.path import AtPoint, ExpertSide, Path
from diagnostics.settings import Settings
from diagnostics.workers import Track, each, silent
from merging.artifact import MergeArtifact
from merging.params import combine, partition, subtract
from merging.suites import Suite
from merging.task import Task, score
from merging.task_vectors import TaskVectors

SPLITS = ("train", "calibration", "validation", "test")


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
        return suite if self.device == "cpu" else _moved(suite, self.device)

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

    def pieces(
        self, name: str, key: str, function: Callable[[int], Mapping[str, Any]], count: int, what: str
    ) -> list[Mapping[str, Any]]:
        """Return ``function(0..count-1)``, each from the cache or computed and kept as soon as it is there."""
        if (name, key) not in self._pieces:
            found = [self.cache.load(f"{name}{i}", key) for i in range(count)]
            missing = [i for i, piece in enumerate(found) if piece is None]
            results = each(function, missing, workers=self.workers, track=self.track, what=what)
            for position, result in enumerate(results):
                self.cache.save(f"{name}{missing[position]}", key, result)
                found[missing[position]] = result
            self._pieces[name, key] = found
        return self._pieces[name, key]

    # What no merge can change ----------------------------------------------------------------------------------------

    def teachers(self) -> list[Mapping[str, Any]]:
        """Per task: test scores of pretrained model and expert, the expert's on validation, labels, split sizes."""
        return self.pieces("teachers", self.key(), self._teacher, len(self.names), "experts on their tasks")

    def _teacher(self, index: int) -> Mapping[str, Any]:
        task, expert = self.suite.tasks[index], self.vectors.expert(index)
        return {
            "pretrained": _scores(task, self.vectors.base, task.test),
            "expert": _scores(task, expert, task.test),
            "validation": _scores(task, expert, task.validation),
            "test_labels": _labels(task.test),
            "validation_labels": _labels(task.validation),
            "classes": len(task.class_names),
            "sizes": {split: len(getattr(task, split)) for split in SPLITS},
        }

    @cached_property
    def trivial_risk(self) -> float:
        """Σ_t α_t ln C_t: the cross-entropy of knowing nothing."""
        return sum(a * math.log(t["classes"]) for a, t in zip(self.alpha, self.teachers(), strict=True))

    @cached_property
    def experts(self) -> ExpertSide:
        """All that (5) knows before a merge is given."""
        settings, vectors = self.settings, self.vectors
        measured = ("held_out", "kernel", "train", "seed")
        count, key = len(self.names), self.key(*measured)
        worlds = [
            linear_world.LinearTask(held_out=self.held_out(task), **{k: piece[k] for k in _WORLD})
            for task, piece in zip(
                self.suite.tasks, self.pieces("world", key, self._world, count, "linearising at θ_0"), strict=True
            )
        ]
        sizes = [len(task.train) for task in self.suite.tasks]
        linear, posteriors = expert_side.linearised(worlds, vectors, sizes, self.blocks, settings)
        sigmas = [statistics.sigma for statistics in linear.statistics]
        key = digest(self.key(*measured, "weight_draws"), sigmas)
        drawn = self.pieces("draws", key, lambda j: self._draw(j, sigmas), count, "sampling posteriors")
        draws = network_world.PosteriorDraws(
            [[piece["scores"][i] for piece in drawn] for i in range(count)],
            [piece["gradients"] for piece in drawn],
            [world.labels for world in worlds],
            [piece["own"] for piece in drawn],
        )
        assumed = expert_side.assumed_linear(linear, draws, sizes)
        centre = vectors.base
        for delta, weight in zip(vectors.deltas, self.beta, strict=True):
            centre = combine(centre, delta, weight)
        return ExpertSide(
            worlds, posteriors, draws, linear, assumed, centre, self.alpha, self.beta, settings.delta, self.trivial_risk
        )

    def _world(self, index: int) -> Mapping[str, Any]:
        settings = self.settings
        world = linear_world.measure(
            self.suite.tasks[index],
            index,
            self.vectors.base,
            self.vectors.deltas,
            self.blocks,
            held_out=settings.held_out,
            kernel=settings.kernel,
            train=settings.train,
            seed=settings.seed,
        )
        return {name: getattr(world, name) for name in _WORLD}

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

    def merged(self, subject: Subject) -> list[Mapping[str, Any]]:
        """Per task: the merged model's scores on test and validation."""

        def one(index: int) -> Mapping[str, Any]:
            task, theta = self.suite.tasks[index], self.weights(subject)
            return {"test": _scores(task, theta, task.test), "validation": _scores(task, theta, task.validation)}

        what = f"{subject.label}: test accuracy"
        return self.pieces("merged", digest(self.key(), subject.key), one, len(self.names), what)

    def displacement(self, subject: Subject) -> Params:
        """θ_m - θ_0."""
        return subtract(self.weights(subject), self.vectors.base)

    def path(self, key: str, displacement: Params, label: str) -> Path:
        """Return the path θ_0 + s·d; J(x)d is measured once and kept under ``key``, which must identify d."""

        def tangents(index: int) -> Mapping[str, Any]:
            task = self.suite.tasks[index]
            inputs = self.held_out(task).inputs
            return {
                "tangents": jvp_scores(task.forward, self.vectors.base, inputs, [displacement])[1][0].double().cpu()
            }

        key = digest(self.key("held_out", "seed"), key)
        found = self.pieces("tangents", key, tangents, len(self.names), f"{label}: along the path")
        worlds = [w.towards(piece["tangents"]) for w, piece in zip(self.experts.worlds, found, strict=True)]
        return Path(self.suite, self.experts, worlds, displacement)

    def at_merge(self, subject: Subject) -> tuple[tuple[Bound, ...], AtPoint]:
        """Return the three readings at θ_m, and what they were made of."""

        def network(index: int) -> Mapping[str, Any]:
            inputs = self.held_out(self.suite.tasks[index]).inputs
            scores, tangents = network_world.along(
                self.suite.tasks[index].forward, self.weights(subject), inputs, self.experts.centre
            )
            return {"scores": scores, "tangents": tangents}

        path = self.path(subject.key, self.displacement(subject), subject.label)
        key = digest(self.key("held_out", "seed"), subject.key)
        found = self.pieces("network", key, network, len(self.names), f"{subject.label}: network at θ_m")
        point = NetworkAtPoint([piece["scores"] for piece in found], [piece["tangents"] for piece in found])
        return path.bounds(1.0, point)


_WORLD = ("scores0", "tangents", "kernel", "train_scores", "train_labels", "train_trace")


def _scores(task: Task, params: Params, sample: Sample) -> Tensor:
    return score(task.forward, params, sample.inputs).double().cpu()


def _labels(sample: Sample) -> Tensor:
    assert sample.labels is not None
    return sample.labels.cpu()


def _moved(suite: Suite, device: str) -> Suite:
    """Return the suite with weights and examples on a device; heads follow the weights."""

    def params(values: Params) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in values.items()}

    def sample(s: Sample) -> Sample:
        inputs = s.inputs.to(device) if isinstance(s.inputs, Tensor) else {k: v.to(device) for k, v in s.inputs.items()}
        return Sample(inputs, None if s.labels is None else s.labels.to(device))

    vectors = suite.task_vectors
    return replace(
        suite,
        task_vectors=TaskVectors(params(vectors.base), [params(d) for d in vectors.deltas], vectors.names),
        tasks=[replace(task, **{split: sample(getattr(task, split)) for split in SPLITS}) for task in suite.tasks],
    )


def check_device(device: str) -> str:
    """Return a device that PyTorch can use here.

    Raises:
        InputError: unknown, or not present.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        got = f"{device!r} ({str(error).splitlines()[0][:80]})"
        refuse("device", expected="a device of this machine, e.g. cpu or cuda", got=got, cure="use --device cpu")
    return device
