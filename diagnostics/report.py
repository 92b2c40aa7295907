"""The content of a bound report: everything measured, as plain data; no files, tables or figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bounds.distillation import Ladder, ladder
from bounds.single_model import READINGS
from bounds.theorems import vertices
from bounds.types import Bound, Estimate, refuse
from diagnostics import anchors as expert_side
from diagnostics import linear_world, network_world
from diagnostics.path import Path, SweepPoint, ntk_radius
from diagnostics.settings import Settings
from merging.artifact import MergeArtifact
from merging.evaluation import TaskRow, evaluate
from merging.params import norm, partition, subtract
from merging.suites import Suite

SCHEMA = "mergebound.report/1"
Track = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Report:
    """A bound report. Lists over experts and tasks follow ``tasks``; ``blocks`` names the posteriors' blocks."""

    artifact: Mapping[str, Any]
    tasks: Sequence[TaskRow]
    distance: float
    expert_distances: Sequence[float]
    measured_risk: float
    measured_error: float
    trivial_risk: float
    alpha: Sequence[float]
    beta: Sequence[float]
    blocks: Sequence[str]
    anchors: Mapping[str, expert_side.Anchors]
    bounds: Sequence[Bound]
    vertices: Sequence[Estimate]
    ladder: Ladder
    sweep: Sequence[SweepPoint]
    ntk_radius: float | None
    settings: Settings
    seconds: Mapping[str, float] = field(default_factory=dict)
    schema: str = SCHEMA


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
        refuse(
            "artifact's sources",
            expected="the files of the suite, by sha256",
            got=f"others for {changed[:3]}",
            cure=cure,
        )
    base = suite.task_vectors.base
    wrong = sorted(
        k
        for k in {*artifact.merged, *base}
        if k not in base or k not in artifact.merged or artifact.merged[k].shape != base[k].shape
    )
    if wrong:
        refuse(
            "artifact's weights",
            expected="the suite's parameter names and shapes",
            got=f"others at {wrong[:3]}",
            cure=cure,
        )


def build(suite: Suite, artifact: MergeArtifact, settings: Settings, track: Track = lambda steps, _: steps) -> Report:
    """Measure everything. α and β are uniform; every random choice follows ``settings.seed``.

    Raises:
        InputError: an artifact that does not belong to the suite, weights that are not finite.
    """
    check_match(suite, artifact)
    clock = _Clock()
    vectors, tasks, merged = suite.task_vectors, suite.tasks, artifact.merged
    count = len(tasks)
    alpha = beta = (1 / count,) * count
    blocks = partition(vectors.base, "block")

    rows, scores = evaluate(suite, merged, track)
    clock.lap("accuracy")
    displacement = subtract(merged, vectors.base)
    worlds = [
        linear_world.measure(
            task,
            index,
            vectors.base,
            [*vectors.deltas, displacement],
            blocks,
            held_out=settings.held_out,
            kernel=settings.kernel,
            train=settings.train,
            seed=settings.seed,
        )
        for index, task in track(list(enumerate(tasks)), "linearising at θ_0")
    ]
    clock.lap("linearisation")
    sizes = [len(task.train) for task in tasks]
    linear, posteriors = expert_side.linearised(worlds, vectors, sizes, blocks, settings)
    clock.lap("posteriors")
    draws = network_world.sample_posteriors(
        tasks,
        [world.held_out for world in worlds],
        [vectors.expert(j) for j in range(count)],
        [s.sigma for s in linear.statistics],
        blocks,
        draws=settings.weight_draws,
        seed=settings.seed,
        posteriors=track(range(count), "sampling posteriors"),
    )
    assumed = expert_side.assumed_linear(linear, draws, tasks, vectors, settings)
    clock.lap("sampled posteriors")
    trivial = sum(a * math.log(row.classes) for a, row in zip(alpha, rows, strict=True))
    path = Path(suite, worlds, posteriors, draws, linear, assumed, displacement, alpha, beta, settings.delta, trivial)
    bounds = path.bounds(1.0)[0]
    grid = [2 * k / (settings.points - 1) for k in range(settings.points)]
    sweep = [path.point(s) for s in track(grid, "distance sweep")]
    clock.lap("sweep")
    return Report(
        artifact={
            key: getattr(artifact, key)
            for key in ("method", "suite", "settings", "seed", "sources", "versions", "seconds")
        },
        tasks=rows,
        distance=norm(displacement),
        expert_distances=[norm(delta) for delta in vectors.deltas],
        measured_risk=sum(a * row.cross_entropy["merged"] for a, row in zip(alpha, rows, strict=True)),
        measured_error=1 - sum(a * row.accuracy["merged"] for a, row in zip(alpha, rows, strict=True)),
        trivial_risk=trivial,
        alpha=alpha,
        beta=beta,
        blocks=list(blocks),
        anchors={"assumed-linear": assumed, "linearised": linear},
        bounds=bounds,
        vertices=vertices(bounds[READINGS.index("linearised")]),
        ladder=ladder(
            [s["expert"] for s in scores],
            [s["merged"] for s in scores],
            alpha,
            surrogate_temperature=artifact.settings.get("temperature", 1.0),
        ),
        sweep=sweep,
        ntk_radius=ntk_radius([p.distance for p in sweep], [p.residual for p in sweep]),
        settings=settings,
        seconds=clock.laps,
    )


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
