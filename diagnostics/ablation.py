"""``python -m diagnostics.ablation --suite mini8 --seeds 5 --out ablation``: what each part of SAMerging is worth.

The pattern of the paper's ablation (arXiv 2512.21288, table 5): distillation alone, entropy in its place, SAM in λ, SAM
in θ. Each row's own setting is chosen on the validation split with the draw of seed 0; the reported seeds 1..S choose
other calibration examples and batches, and alone see the test split. Every run is one small file under OUT/runs, so
that an interrupted command goes on where it was.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bounds.types import refuse
from diagnostics.work.cache import Cache, digest, write
from diagnostics.work.identity import code_of
from merging import merge, suites
from merging.commands import console, options, run, stage, track
from merging.files import check_folder, encoded
from merging.plain import to_plain
from merging.suites import Suite
from merging.task import accuracy, check_one_row, score_task

METHOD, BASELINE = "samerging", "KL only"
CHOICE_SEED = 0


@dataclass(frozen=True)
class Row:
    """A line of the table: settings on top of the baseline's chosen ones, and one field chosen from a grid."""

    settings: Mapping[str, Any]
    chosen: str
    grid: tuple[float, ...]


ROWS: Mapping[str, Row] = {
    BASELINE: Row({"objective": "kl", "perturbation": "none"}, "learning_rate", (0.01, 0.02, 0.04, 0.08)),
    "entropy + SAM (λ)": Row(
        {"objective": "entropy", "perturbation": "coefficients", "rho": 0.07},
        "learning_rate",
        (0.0005, 0.001, 0.003, 0.01),
    ),
    "KL + SAM (λ)": Row({"perturbation": "coefficients"}, "rho", (0.02, 0.07, 0.2, 0.5)),
    "KL + SAM (θ)": Row({"perturbation": "weights"}, "rho", (0.002, 0.005, 0.01, 0.02)),
}


@dataclass(frozen=True)
class Run:
    """One merge: its settings and, per split scored, the accuracy (0..1) of each task."""

    settings: Mapping[str, Any]
    accuracy: Mapping[str, Mapping[str, float]]
    seconds: float

    def mean(self, split: str) -> float:
        """Unweighted mean over tasks."""
        return statistics.fmean(self.accuracy[split].values())


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row's result: chosen settings, validation accuracy of each grid value, test accuracies of the seeds (0..1)."""

    name: str
    settings: Mapping[str, Any]
    chosen: str
    validation: Mapping[str, float]
    test: Sequence[float]
    seconds: float

    def difference(self, baseline: Line) -> list[float]:
        """Test accuracy minus the baseline's, seed by seed."""
        return [a - b for a, b in zip(self.test, baseline.test, strict=True)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error over seeds (sample standard deviation / √S)."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True, kw_only=True)
class Command:
    """Ablate SAMerging over seeds: a table on the terminal, ablation.json and ablation.md."""

    suite: str = "mini8"
    """Experts and tasks: mini8, text8, toy, a suite file .yaml, clip-ta8 and the like, or package.module:function."""
    seeds: int = 5
    """Number of reported seeds, 2 or more: each chooses its own calibration examples and batches."""
    out: Path = Path("ablation")
    """Folder for the tables and for runs/, one file per merge; runs found there are not done again."""
    steps: int = 60
    """Optimiser steps of every merge."""
    batch: int = 8
    """Examples of each task in a step."""
    examples: int = 64
    """Unlabelled calibration examples of each task."""
    threads: int = 1
    """Threads of PyTorch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(options(Command, arguments, "mergebound ablation")))


def _main(command: Command) -> None:
    for name, least in (("seeds", 2), ("steps", 1), ("batch", 1), ("examples", 1), ("threads", 1)):
        if getattr(command, name) < least:
            refuse(name, expected=f"at least {least}", got=getattr(command, name), cure="raise it")
    check_folder(command.out, "output", ("ablation.json", "ablation.md"), parents=True)
    check_folder(command.out / "runs", "output", parents=True)
    torch.set_num_threads(command.threads)
    with stage(f"loading {command.suite}"):
        suite = suites.load(command.suite)
    check_one_row(suite.tasks, "ablation", "measure rows with mergebound compare")
    command.out.mkdir(parents=True, exist_ok=True)
    lines = ablate(suite, command)
    content = {"suite": suite.name, "seeds": command.seeds, "lines": [to_plain(line) for line in lines]}
    write(command.out / "ablation.json", encoded(json.dumps(content, indent=1, ensure_ascii=False)))
    write(command.out / "ablation.md", as_markdown(lines, command).encode())
    output = console()
    output.print(as_table(lines, suite.name))
    output.print(f"{command.out / 'ablation.json'} and ablation.md", highlight=False)


def ablate(suite: Suite, command: Command) -> list[Line]:
    """Choose every row's setting on validation, then run the seeds and score them on test."""
    cache = Cache(command.out / "runs")
    common = {"steps": command.steps, "batch": command.batch, "examples": command.examples}
    chosen: dict[str, dict[str, Any]] = {}
    grids: dict[str, dict[str, float]] = {}
    for name, row in ROWS.items():
        settings = {**common, **chosen.get(BASELINE, {}), **row.settings, "seed": CHOICE_SEED}
        grids[name] = {}
        for index in track(range(len(row.grid)), f"{name}: {row.chosen} on validation"):
            value = row.grid[index]
            found = _run(cache, suite, {**settings, row.chosen: value}, ("validation",))
            grids[name][str(value)] = found.mean("validation")
        best = max(grids[name], key=lambda value: grids[name][value])
        chosen[name] = {**settings, row.chosen: float(best)}
    names = list(ROWS)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    todo = [(name, 1 + seed) for seed in range(command.seeds) for name in names]
    for name, seed in track(todo, "seeds on test", lambda one: f"{one[0]}, seed {one[1]}"):
        runs[name].append(_run(cache, suite, {**chosen[name], "seed": seed}, ("test",)))
    return [
        Line(
            name=name,
            settings={key: value for key, value in chosen[name].items() if key != "seed"},
            chosen=ROWS[name].chosen,
            validation=grids[name],
            test=[found.mean("test") for found in runs[name]],
            seconds=statistics.fmean(found.seconds for found in runs[name]),
        )
        for name in names
    ]


def _run(cache: Cache, suite: Suite, settings: Mapping[str, Any], splits: Sequence[str]) -> Run:
    key = digest(code_of(_run), suite.identity, METHOD, settings, splits)
    return cache.data(Run, "run", key, partial(_merge, suite, settings, splits))


def _merge(suite: Suite, settings: Mapping[str, Any], splits: Sequence[str]) -> Run:
    artifact = merge(METHOD, suite.task_vectors, suite.tasks, suite=suite.name, **settings)
    found: dict[str, dict[str, float]] = {}
    for split in splits:
        found[split] = {}
        for task in suite.tasks:
            sample = getattr(task, split)
            found[split][task.name] = accuracy(
                score_task(task, artifact.merged, sample.inputs, split, "merged"), sample.labels
            )
    return Run(dict(settings), found, artifact.seconds)


def cells(line: Line, baseline: Line) -> list[str]:
    """Return a line's cells: name, chosen settings, test accuracy, paired difference, seconds."""
    mean, error = mean_and_error(line.test)
    difference, of_difference = mean_and_error(line.difference(baseline))
    shown = {line.chosen: line.settings[line.chosen], "learning_rate": line.settings["learning_rate"]}
    if line.settings["perturbation"] != "none":
        shown["rho"] = line.settings["rho"]
    return [
        line.name,
        ", ".join(f"{key} {value:g}" for key, value in sorted(shown.items())),
        f"{100 * mean:.2f} ± {100 * error:.2f}",
        "" if line is baseline else f"{100 * difference:+.2f} ± {100 * of_difference:.2f}",
        f"{line.seconds:.0f}",
    ]


def _header(lines: Sequence[Line]) -> list[str]:
    seeds = len(lines[0].test)
    return ["row", "chosen on validation", f"test accuracy, {seeds} seeds (%)", f"difference to {BASELINE}", "s/merge"]


def as_table(lines: Sequence[Line], suite: str) -> Table:
    """Return the terminal's table: means over seeds ± standard errors, differences paired by seed."""
    table = Table(title=f"Ablation on {suite}: mean over seeds ± standard error")
    for column in _header(lines):
        table.add_column(column)
    for line in lines:
        table.add_row(*cells(line, lines[0]))
    return table


def as_markdown(lines: Sequence[Line], command: Command) -> str:
    """Return the same table in Markdown, with the validation accuracy of every grid value and the command."""

    def row(values: Sequence[str]) -> str:
        return f"| {' | '.join(values)} |"

    header = _header(lines)
    text = [row(header), row(["---"] * len(header)), *(row(cells(line, lines[0])) for line in lines), ""]
    text += ["Validation accuracy (%) with the draw of seed 0, by which each row's setting was chosen:", ""]
    for line in lines:
        grid = ", ".join(f"{value}: {100 * found:.2f}" for value, found in line.validation.items())
        text.append(f"- {line.name}, {line.chosen}: {grid}")
    options = f"--suite {command.suite} --seeds {command.seeds} --steps {command.steps} --batch {command.batch}"
    text += ["", f"Command: `python -m diagnostics.ablation {options} --examples {command.examples}`", ""]
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
