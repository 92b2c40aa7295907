"""``mergebound reproduce ta8 --model ViT-B-32``: SAMerging on a published suite, beside the published numbers."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table

from bounds.types import refuse
from merging import presets, suites
from merging.commands.compare import kept, parse, read_kept
from merging.commands.evaluation import mean
from merging.commands.measure import REFERENCES, Measurement, Spec, measure_apart
from merging.commands.options import options
from merging.commands.terminal import console, plain, run, stage, track
from merging.execution import check_device
from merging.files import check_destination, check_folder, encoded, write
from merging.methods import METHODS
from merging.suites import Suite, published

SCHEMA = "mergebound.reproduce/1"
FILES = ("reproduce.json", "reproduce.md")
BATCH = 16
SHORT: Mapping[str, str] = {"ta8": "clip-ta8", "tall14": "clip-tall14", "tall20": "clip-tall20", "glue7": "gpt2-glue7"}
BESIDE: Mapping[str, Spec] = {
    "average": Spec("average"),
    "task_arithmetic": Spec("task_arithmetic", {"scale": 0.3}),
    "ties": Spec("ties", {"scale": 0.3, "density": 0.2}),
    "regmean": Spec("regmean", {"examples": 256, "off_diagonal": 0.95}),
    "adamerging": Spec("adamerging", {"steps": 1000, "batch": BATCH, "examples": None, "reduction": "sum"}),
    "iso_c": Spec("iso_c", {"scale": 1.0}),
    "tsv_m": Spec("tsv_m", {"scale": 1.0}),
    "wudi": Spec("wudi"),
}
"""Row -> the method with the settings that the published number was made with, as far as FusionBench states them."""
UNITS = (
    "mean over tasks of the test accuracy in %; ±: standard deviation over seeds; difference: ours less the published "
    "number. Calibration images come from the training split (the published code: from the test split), and test is "
    "the published split less what validation was cut from it"
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run SAMerging with the paper's settings on a published suite, beside baselines and the published numbers.

    The suite is fetched first, with mergebound suite fetch. Each merge runs in a process of its own; results are kept
    in OUT/results, so that a run that was killed goes on, a learned merge from its last steps.
    """

    suite: Annotated[str, tyro.conf.Positional]
    """ta8, tall14, tall20 or glue7."""
    model: str | None = None
    """The base model: ViT-B-32 (default), ViT-B-16 or ViT-L-14."""
    methods: tuple[str, ...] = ("average", "task_arithmetic", "ties", "adamerging")
    """Rows beside SAMerging: average, task_arithmetic, ties, regmean, adamerging, iso_c, tsv_m, wudi (with the settings
    of the published numbers), or any method with settings as ties:density=0.1; none for none."""
    examples: tuple[int, ...] = ()
    """Data efficiency: SAMerging with so many unlabelled examples of each task, e.g. 16 160 1600."""
    ablate: bool = False
    """KL or entropy as objective, with and without SAM."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every method that draws."""
    steps: int | None = None
    """Steps of the learned methods, by default the published 1000."""
    hub: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """The folder of fetched suites; by default what MERGEBOUND_HUB names, else a folder of the user's cache."""
    out: Path = Path("reproduce")
    """Folder of results and tables."""
    device: str = "cpu"
    """Where networks run: cpu, cuda or cuda:N."""
    threads: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: all cores)")] = 0
    """Threads of PyTorch; 0 for every core."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: a method, once per seed where it draws, and the published number it is compared with."""

    part: str
    label: str
    specs: Sequence[Spec]
    published: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row that was measured: accuracies in 0..1, seed by seed and task by task; means and difference in %."""

    part: str
    label: str
    published: float | None
    settings: Sequence[Mapping[str, Any]]
    accuracy: Sequence[Sequence[float]] = field(default_factory=list)
    mean: float | None = None
    spread: float | None = None
    difference: float | None = None
    reason: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    command = options(Command, arguments, "mergebound reproduce")
    name = suite_name(command)
    planned = plan(command, name)
    _check(command)
    if command.hub is not None:
        os.environ[published.FOLDER_VARIABLE] = str(command.hub.absolute())  # processes of merges inherit it
    with stage(f"loading {name}"):
        suite = suites.load(name)
    results = reproduce(planned, suite, command)
    output = console()
    output.print(_table(results, suite))
    output.print(f"{UNITS}. {published.FAMILY}.", soft_wrap=True, highlight=False)
    for found in results:
        if found.reason:
            output.print(plain(f"{found.label} did not run: {found.reason}"), soft_wrap=True)
    output.print(plain(f"{command.out}: {', '.join(FILES)}"), soft_wrap=True)


def suite_name(command: Command) -> str:
    """Return the published suite that the command means.

    Raises:
        InputError: an unknown suite or base model.
    """
    name = SHORT.get(command.suite, command.suite)
    return published.find(name if command.model is None else f"{name}:{command.model}").name


def plan(command: Command, suite: str) -> list[Row]:
    """Return all rows, in the order in which they are shown.

    Raises:
        InputError: an unknown method or setting, an option out of range.
    """
    known = published.NUMBERS.get(suite, {})
    rows = [_row("beside", name, Spec(name), command, known.get(name)) for name in REFERENCES]
    for text in () if command.methods == ("none",) else command.methods:
        if text in BESIDE:
            rows.append(_row("beside", text, BESIDE[text], command, known.get(text)))
        else:
            rows += [_row("beside", spec.label, spec, command) for spec in parse([text])[len(REFERENCES) :]]
    rows.append(_row("beside", "samerging", Spec("samerging", _paper()), command, known.get("samerging")))
    for count in command.examples:
        if count < 1:
            refuse("--examples", expected="at least 1", got=count, cure="raise it")
        given = {**_paper(), "batch": min(BATCH, count), "cached": max(1, count // BATCH)}
        given["examples"] = None if count == published.SIZES.calibration else count  # all there are, as in the paper
        rows.append(_row("examples", f"{count} examples", Spec("samerging", given), command))
    for objective in ("kl", "entropy") if command.ablate else ():
        for perturbation, shown in (("none", "no SAM"), ("coefficients-adaptive", "SAM")):
            given = {**_paper(), "objective": objective, "perturbation": perturbation}
            rows.append(_row("ablation", f"{objective}, {shown}", Spec("samerging", given), command))
    return rows


def _paper() -> dict[str, Any]:
    return dict(presets.find("samerging", "paper").settings)


def _row(part: str, label: str, spec: Spec, command: Command, number: float | None = None) -> Row:
    """Return the row of a method: with the asked number of steps where it learns, once per seed where it draws."""
    known = METHODS[spec.method].settings.__dataclass_fields__ if spec.method in METHODS else {}
    given = dict(spec.given)
    if command.steps is not None and {"steps", "batch", "cached"} <= set(known):
        given["steps"] = command.steps
    seeds = dict.fromkeys(command.seeds) if "seed" in known and "seed" not in given else ()
    specs = [replace(spec, given={**given, "seed": seed}) for seed in seeds] or [replace(spec, given=given)]
    for one in specs:
        _ = one.settings  # refuses what is unknown or out of range before any work
    return Row(part=part, label=label, specs=specs, published=number)


def _check(command: Command) -> None:
    if not command.seeds:
        refuse("--seeds", expected="at least one", got="none", cure="e.g. --seeds 0 1 2")
    if command.threads < 0:
        refuse("--threads", expected="at least 0", got=command.threads, cure="raise it")
    check_device(command.device)
    check_folder(command.out, "output", FILES, parents=True)


def reproduce(rows: Sequence[Row], suite: Suite, command: Command) -> list[Result]:
    """Measure what is missing in OUT/results, write the tables, and return all rows.

    Raises:
        InputError: a folder that cannot be written, a process that was killed.
    """
    folder = check_folder(command.out / "results", "output", parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    specs = {spec.key(suite): spec for row in rows for spec in row.specs}
    paths = {key: check_destination(folder / f"{spec.method}-{key}.json") for key, spec in specs.items()}
    there = sum(read_kept(path, key) is not None for key, path in paths.items())
    console().print(
        plain(f"{suite.name}: {len(specs)} runs, of which {there} are kept in {folder}; {len(specs) - there} to go"),
        soft_wrap=True,
    )
    threads = command.threads or torch.get_num_threads()
    found: dict[str, Measurement] = {}
    for key, spec in track(list(specs.items()), f"merging {suite.name}", lambda item: item[1].label):
        found[key] = kept(paths[key], key, spec, lambda spec=spec, key=key: _measured(
            spec, suite.origin, threads, command.device, folder / f"{key}.checkpoint"
        ))  # fmt: skip
    results = [_result(row, [found[spec.key(suite)] for spec in row.specs]) for row in rows]
    _write_all(results, suite, command.out)
    return results


def _measured(spec: Spec, origin: str, threads: int, device: str, checkpoint: Path) -> Measurement:
    """Measure apart; the progress of a learned merge stays on the disk until it is measured."""
    executes = spec.method in METHODS and METHODS[spec.method].executes
    found = measure_apart(spec, origin, threads, device, checkpoint if executes else None, scores=checkpoint.parent)
    if not found.reason:
        checkpoint.unlink(missing_ok=True)
    return found


def _result(row: Row, measured: Sequence[Measurement]) -> Result:
    whole = {"part": row.part, "label": row.label, "published": row.published}
    settings = [dict(spec.settings) for spec in row.specs]
    reason = next((m.reason for m in measured if m.reason), "")
    if reason:
        return Result(**whole, settings=settings, reason=reason)
    means = [100 * mean(m.accuracy) for m in measured]
    average = mean(means)
    return Result(
        **whole,
        settings=settings,
        accuracy=[list(m.accuracy) for m in measured],
        mean=average,
        spread=statistics.stdev(means) if len(means) > 1 else None,
        difference=None if row.published is None else average - row.published,
    )


HEADER = ("", "row", "published", "here", "difference", "seeds")
TITLES = {"beside": "", "examples": "examples of each task", "ablation": "ablation"}


def _cells(result: Result, *, first: bool) -> list[str]:
    part = TITLES[result.part] if first else ""
    number = "" if result.published is None else f"{result.published:.1f}"
    if result.mean is None:
        return [part, result.label, number, "did not run", "", ""]
    spread = "" if result.spread is None else f" ± {result.spread:.1f}"
    difference = "" if result.difference is None else f"{result.difference:+.1f}"
    return [part, result.label, number, f"{result.mean:.1f}{spread}", difference, str(len(result.accuracy))]


def _lines(results: Sequence[Result]) -> list[list[str]]:
    return [_cells(r, first=i == 0 or results[i - 1].part != r.part) for i, r in enumerate(results)]


def _table(results: Sequence[Result], suite: Suite) -> Table:
    table = Table(title=plain(f"{suite.name}: mean test accuracy (%)", "table.title"))
    for column in HEADER:
        table.add_column(column, justify="left" if column in ("", "row") else "right")
    for line in _lines(results):
        table.add_row(*map(plain, line))
    return table


def _write_all(results: Sequence[Result], suite: Suite, out: Path) -> None:
    names = [task.name for task in suite.tasks]
    content = {"schema": SCHEMA, "suite": suite.name, "origin": suite.origin, "sources": dict(suite.sources)}
    content |= {"tasks": names, "units": UNITS, "family": published.FAMILY, "rows": [asdict(row) for row in results]}
    rows = [list(HEADER), ["---", "---", *["---:"] * (len(HEADER) - 2)], *_lines(results)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    tasks = [["row", *names], ["---", *["---:"] * len(names)]]
    for row in results:
        means = [f"{100 * mean(values):.1f}" for values in zip(*row.accuracy, strict=True)]
        tasks += [[row.label, *means]] if means else []
    by_task = "\n".join(f"| {' | '.join(row)} |" for row in tasks)
    reasons = "".join(f"\n- {row.label} did not run: {row.reason}" for row in results if row.reason)
    text = f"# {suite.name}\n\n{table}\n\n{UNITS}. {published.FAMILY}.\n\n## By task\n\n{by_task}\n{reasons}\n"
    for name, data in zip(FILES, (json.dumps(content, ensure_ascii=False, indent=1, default=str), text), strict=True):
        write(out / name, lambda file, data=data: file.write(encoded(data)))
