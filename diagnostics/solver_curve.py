"""``python -m diagnostics.solver_curve --suite mini8 --out FOLDER``: calibration KL against passes, solver by solver.

One pass is a forward and a backward of one example through the network (merging.gauss_newton.jacobian says what VJPs,
JVPs and forwards count). The KL is that of all calibration examples; measuring it is not counted, nor are the teachers'
scores, which every solver needs once.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from bounds.types import refuse
from diagnostics.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    as_images,
    legend_below,
    new_figure,
)
from diagnostics.figures.svg import INK, standalone
from diagnostics.work.cache import write
from merging import gauss_newton, learned, suites
from merging.commands import console, options, run, stage, track
from merging.files import check_folder
from merging.learned import LearnedSettings, Problem
from merging.suites import Suite
from merging.task import Split, check_one_row, mean_accuracy, score
from merging.task_vectors import merged

POINTS = 60
"""Iterates of a run whose calibration KL is measured (which takes longer than a step)."""
Iterates = Iterator[tuple[float, Tensor]]
"""(cumulative passes, λ [T, L]) from the init to the last iterate."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Measure how the calibration KL falls with passes through the network."""

    out: Path
    """Folder for solver_curve.json, .svg and .png."""
    suite: str = "mini8"
    """Experts and tasks: mini8, text8, toy, a suite file .yaml, clip-ta8 and the like, or package.module:function."""
    steps: int = 300
    """Steps of the two runs of samerging that are the goal."""
    examples: int = 64
    """k: calibration examples of each task."""
    seed: int = 0
    """Seed of the choice and order of examples, for every solver."""
    threads: int = 1
    """Threads of PyTorch."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One solver's run: passes, calibration KL (nats) and wall time (s, measuring left out) along it, accuracy after.

    Accuracies (0..1) are means over tasks of the last iterate.
    """

    label: str
    settings: Mapping[str, Any]
    passes: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: float = 0.0
    test: float = 0.0


def _samerging(problem: Problem, settings: LearnedSettings) -> Iterates:
    state = learned.init(problem)
    yield 0.0, state.coefficients.detach()
    for _ in range(settings.steps):
        learned.update(problem, state)
        yield state.history["passes"][-1], state.coefficients.detach()


def _gauss_newton(problem: Problem, settings: gauss_newton.GaussNewtonSettings) -> Iterates:
    state = gauss_newton.init(problem, settings)
    yield 0.0, gauss_newton.coefficients(problem, state)
    while not state.finished and len(state.history["loss"]) < settings.iterations:
        gauss_newton.update(problem, settings, state)
        yield state.history["passes"][-1], gauss_newton.coefficients(problem, state)


def _tangent(problem: Problem, settings: gauss_newton.TangentSettings) -> Iterates:
    yield 0.0, gauss_newton.coefficients(problem, gauss_newton.init(problem, settings))
    state = gauss_newton.tangent(problem, settings)
    yield state.history["passes"][-1], gauss_newton.coefficients(problem, state)


def _runs(command: Command) -> dict[str, Any]:
    """Label -> settings of every run."""
    shared: dict[str, Any] = {"examples": command.examples, "seed": command.seed}
    every: dict[str, Any] = {**shared, "batch": None, "cotangents": None, "check": None, "least_damping": 0.0}
    none: dict[str, Any] = {**shared, "perturbation": "none"}
    return {
        "samerging, no perturbation": LearnedSettings(steps=command.steps, **none),
        "samerging, default perturbation": LearnedSettings(steps=command.steps, **shared),
        "samerging, no perturbation, batch 1": LearnedSettings(steps=8 * command.steps // 5, batch=1, **none),
        "gauss_newton": gauss_newton.GaussNewtonSettings(**shared),
        "gauss_newton, 2 cotangents": gauss_newton.GaussNewtonSettings(cotangents=2, iterations=54, **shared),
        "gauss_newton, all examples, exact Jacobian": gauss_newton.GaussNewtonSettings(iterations=5, **every),
        "tangent": gauss_newton.TangentSettings(**shared),
        "tangent around the average": gauss_newton.TangentSettings(init=None, **shared),
    }


def measure(suite: Suite, label: str, settings: Any) -> Curve:
    """Run one solver and measure the calibration KL of its init, about ``POINTS`` iterates and the last."""
    shared = settings if isinstance(settings, LearnedSettings) else settings.learned()
    problem = learned.prepare(suite.task_vectors, suite.tasks, shared)
    if isinstance(settings, LearnedSettings):
        iterates = _samerging(problem, settings)
    elif isinstance(settings, gauss_newton.GaussNewtonSettings):
        iterates = _gauss_newton(problem, settings)
    else:
        iterates = _tangent(problem, settings)
    most = settings.steps if isinstance(settings, LearnedSettings) else getattr(settings, "iterations", 1)
    every = math.ceil(most / POINTS)
    curve, spent, passes, coefficients = Curve(label=label, settings=asdict(settings)), 0.0, 0.0, torch.empty(0)

    def note() -> None:
        curve.passes.append(passes)
        curve.kl.append(calibration_kl(problem, coefficients))
        curve.seconds.append(spent)

    for index in itertools.count():
        started = time.perf_counter()
        iterate = next(iterates, None)
        spent += time.perf_counter() - started
        if iterate is None:
            break
        passes, coefficients = iterate
        if index % every == 0:
            note()
    if curve.passes[-1] != passes:
        note()
    theta = merged(problem.task_vectors, coefficients, problem.blocks)
    splits: tuple[Split, ...] = ("validation", "test")
    accuracies = {split: mean_accuracy(suite.tasks, theta, split) for split in splits}
    return Curve(
        label=label, settings=curve.settings, passes=curve.passes, kl=curve.kl, seconds=curve.seconds, **accuracies
    )


def calibration_kl(problem: Problem, coefficients: Tensor) -> float:
    """Mean over tasks of the KL on all calibration examples, nats. Exact."""
    theta = merged(problem.task_vectors, coefficients, problem.blocks)
    losses = [
        problem.objective(score(forward, theta, inputs), teacher, problem.settings.temperature)
        for forward, inputs, teacher in zip(problem.forwards, problem.inputs, problem.teacher_scores, strict=True)
    ]
    return float(torch.stack(losses).mean())


def reached(curve: Curve, kl: float) -> float | None:
    """Return the passes after which the calibration KL was first at or below ``kl``; none if it never was."""
    return next((passes for passes, value in zip(curve.passes, curve.kl, strict=True) if value <= kl), None)


def draw(curves: Sequence[Curve], examples: int) -> Figure:
    """KL against passes (logarithmic), one line per run; dashed: a tenth of each goal's passes and its KL."""
    figure = new_figure(5.0)
    axes = figure.subplots()
    colours = (INK, BLUE, SKY, VERMILION, YELLOW, ORANGE, GREEN, PURPLE)
    markers = ("", "", "", "o", "v", "s", "^", "D")
    top = 1.15 * max(curve.kl[0] for curve in curves[:2])
    for curve, colour, marker in zip(curves, colours, markers, strict=True):
        label = curve.label if curve.kl[-1] < top else f"{curve.label} (off the scale: {curve.kl[-1]:.2f})"
        axes.plot(curve.passes, curve.kl, color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=label)
    for curve, colour in zip(curves[:2], colours, strict=False):
        axes.plot(
            [curve.passes[-1] / 10] * 2, [0, curve.kl[-1]], color=colour, linestyle="--", linewidth=1,
            label=f"a tenth of the passes, its KL ({curve.kl[-1]:.3f})",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=examples)
    axes.set_ylim(0.9 * min(min(curve.kl) for curve in curves), top)
    axes.set_xlabel("passes (one forward and backward of one example)")
    axes.set_ylabel("calibration KL, mean over tasks (nats)")
    legend_below(figure, axes, 2)
    return figure


def table(curves: Sequence[Curve]) -> Table:
    """Tabulate the final figures of every run and the passes after which it had reached the KL of the two goals."""
    result = Table(title="calibration KL against passes")
    for column in ("solver", "passes", "KL", "≤ goal 1", "≤ goal 2", "seconds", "validation %", "test %"):
        result.add_column(column, justify="left" if column == "solver" else "right")
    for curve in curves:
        goals = [reached(curve, goal.kl[-1]) for goal in curves[:2]]
        result.add_row(
            curve.label,
            f"{curve.passes[-1]:.0f}",
            f"{curve.kl[-1]:.4f}",
            *("never" if passes is None else f"{passes:.0f}" for passes in goals),
            f"{curve.seconds[-1]:.1f}",
            f"{100 * curve.validation:.2f}",
            f"{100 * curve.test:.2f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(options(Command, arguments, "python -m diagnostics.solver_curve")))


def _main(command: Command) -> None:
    for name in ("steps", "examples", "threads"):
        if getattr(command, name) < 1:
            refuse(name, expected="at least 1", got=getattr(command, name), cure="raise it")
    check_folder(command.out, "output", [f"solver_curve.{kind}" for kind in ("json", "svg", "png")], parents=True)
    torch.set_num_threads(command.threads)
    runs = _runs(command)
    with stage(f"loading {command.suite}"):
        suite = suites.load(command.suite)
    check_one_row(suite.tasks, "curve of the solver", "measure rows with mergebound compare")
    labels = list(runs)
    curves = [measure(suite, labels[i], runs[labels[i]]) for i in track(range(len(labels)), "solvers")]
    drawing = as_images(lambda: draw(curves, command.examples), "solver-curve")
    command.out.mkdir(parents=True, exist_ok=True)
    content = {"suite": suite.name, "curves": [asdict(curve) for curve in curves]}
    write(command.out / "solver_curve.json", json.dumps(content, indent=1).encode())
    write(command.out / "solver_curve.svg", standalone(drawing.svg).encode())
    write(command.out / "solver_curve.png", base64.b64decode(drawing.png))
    console().print(table(curves))


if __name__ == "__main__":
    sys.exit(main())
