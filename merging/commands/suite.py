"""``python -m merging suite init|check|fetch``: write a suite file, probe a suite before long runs, fetch one."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.table import Table
from torch import Tensor

from bounds.autodiff import check_params
from bounds.scores import log_probabilities
from bounds.types import Params, Sample, meant, refuse
from merging import suites
from merging.commands.fetch import fetch
from merging.commands.options import options
from merging.commands.terminal import console, plain, run, stage, track
from merging.files import check_destination, encoded, write
from merging.measured import Measured, measure
from merging.models import KINDS
from merging.sequences import perplexity
from merging.suites import Suite
from merging.suites.suite_template import template
from merging.task import Task


@dataclass(frozen=True, kw_only=True)
class Init:
    """Write a commented suite file to begin with."""

    kind: Annotated[str, tyro.conf.arg(help=f"Kind of network: {', '.join(KINDS)}.")] = "hf_text"
    out: Path = Path("suite.yaml")
    """The file to write; one that is there already is never overwritten."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Probe all that a suite names before any long run: status 0 when a merge can go ahead, 2 when it cannot."""

    suite: Annotated[str, tyro.conf.Positional]
    """A suite file, a suite's name, or package.module:function."""
    examples: int = 256
    """Test examples of a task that are scored, at most."""
    threads: int = 1
    """Threads of PyTorch."""


def main(arguments: Sequence[str]) -> int:
    """Run ``suite init``, ``suite check`` or ``suite fetch``; return the exit status."""
    chosen = {"init": init, "check": check, "fetch": fetch}

    def command() -> None:
        if arguments and arguments[0] in chosen:
            chosen[arguments[0]](arguments[1:])
        elif arguments and arguments[0] in ("-h", "--help"):
            print("usage: mergebound suite init|check|fetch [--help]\n\n  init   write a commented suite file")
            print("  check  probe all that a suite names before any long run")
            print("  fetch  list what a published suite would download from the hub, and download it")
            sys.exit(0)
        else:
            got = repr(arguments[0]) if arguments else "nothing"
            cure = meant(arguments[0] if arguments else "", chosen, "add --help to see their options")
            refuse("suite command", expected=" or ".join(chosen), got=got, cure=cure)

    return run(command)


def init(arguments: Sequence[str]) -> None:
    """Write the template."""
    command = options(Init, arguments, "mergebound suite init")
    if command.kind not in KINDS:
        refuse("--kind", expected=" or ".join(KINDS), got=repr(command.kind), cure=meant(command.kind, KINDS))
    if command.out.exists():
        refuse(f"--out {command.out}", expected="a new file", got="one that is there", cure="name another one")
    check_destination(command.out, "--out")
    write(command.out, lambda file: file.write(encoded(template(command.kind))))
    console().print(plain(f"{command.out}: fill it in, then mergebound suite check {command.out}"))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found of one task: figures, and what a reader should look at.

    ``pretrained`` and ``expert`` are accuracies in 0..1, of tasks with a label at every position perplexities; None
    where there are no labels.
    """

    task: str
    pretrained: float | None
    expert: float | None
    spread: float
    entropy: float
    distance: float
    warnings: tuple[str, ...]


def check(arguments: Sequence[str]) -> None:
    """Load the suite and probe it."""
    command = options(Check, arguments, "mergebound suite check")
    for name in ("examples", "threads"):
        if getattr(command, name) < 1:
            refuse(f"--{name}", expected="at least 1", got=getattr(command, name), cure="raise it")
    torch.set_num_threads(command.threads)
    with stage(f"loading {command.suite}"):
        suite = suites.load(command.suite)
    check_params(suite.task_vectors.base, what="θ_0")
    probes = [probe(suite, index, command.examples) for index in track(range(len(suite.tasks)), "probing tasks")]
    output = console()
    output.print(table(suite, probes))
    for name, note in suite.notes.items():
        output.print(plain(f"{name}: {note}"), soft_wrap=True)
    for found in probes:
        for line in found.warnings:
            output.print(plain(f"look at task {found.task}: {line}"), soft_wrap=True)
    output.print(plain(f"{command.suite}: {len(suite.tasks)} experts can be merged"), soft_wrap=True)


def probe(suite: Suite, index: int, examples: int) -> Probe:
    """Probe one task: finite weights, scores of the right shape that are the same twice, figures, score scale.

    Raises:
        InputError: weights or scores that are not finite or do not fit, scores that change from call to call.
    """
    task, vectors = suite.tasks[index], suite.task_vectors
    expert = vectors.expert(index)
    check_params(expert, vectors.base, what=f"expert {task.name!r}")
    sample = task.test.take(slice(examples))
    seen = _look(task, expert, sample)
    known: dict[str, Measured] = {}
    if sample.labels is not None:
        models = {"pretrained": vectors.base, "expert": expert}
        known = {m: measure(task.rows(theta, sample, "test", m), sample.labels) for m, theta in models.items()}
    figures = {model: perplexity(m.loss) if task.per_position else m.accuracy for model, m in known.items()}
    return Probe(
        task=task.name,
        pretrained=figures.get("pretrained"),
        expert=figures.get("expert"),
        spread=seen.spread,
        entropy=seen.entropy,
        distance=sum(float((expert[n].double() - vectors.base[n].double()).square().sum()) for n in expert) ** 0.5,
        warnings=tuple(_warnings(task, known, seen, sample.labels, expert, vectors.base)),
    )


@dataclass(frozen=True)
class _Look:
    """Of an expert's scores: mean standard deviation of a row, mean entropy / ln C, the largest in size."""

    spread: float
    entropy: float
    largest: float


def _look(task: Task, expert: Params, sample: Sample) -> _Look:
    """Look at the expert's scores, batch by batch, and see that they are the same twice."""
    sums, count, largest = torch.zeros(2, dtype=torch.float64), 0, 0.0
    twice = (task.rows(expert, sample, "test", "expert") for _ in range(2))
    for (own, _), (again, _) in zip(*twice, strict=True):
        if not torch.equal(own, again):
            got, cure = f"a difference of {float((own - again).abs().max()):.2g}", "switch dropout and sampling off"
            refuse(f"scores of task {task.name!r}", expected="the same numbers twice", got=got, cure=cure)
        log_p = log_probabilities(own.double())
        sums += torch.stack([own.double().std(dim=1).sum(), -(log_p.exp() * log_p).sum()])
        count, largest = count + len(own), max(largest, float(own.abs().max()))
    spread, entropy = (sums / count).tolist()
    return _Look(spread, entropy / math.log(task.classes), largest)


_CAUSES = "wrong file, wrong head, or labels in another order?"


def _warnings(
    task: Task,
    known: Mapping[str, Measured],
    seen: _Look,
    labels: Tensor | None,
    expert: Params,
    base: Params,
) -> list[str]:
    tests: Mapping[str, bool] = {
        **({} if labels is None else _labelled_tests(task, known, seen.entropy, labels)),
        "its scores are larger than 1000: is a logit scale applied twice?": seen.largest > 1000,
        "its expert's weights are the pretrained ones": all(torch.equal(expert[n], base[n]) for n in expert),
    }
    found = [text for text, holds in tests.items() if holds]
    if not task.per_position and (absent := _absent(task.test.labels, task.classes)):
        found.append(f"classes without a test example: {absent}")
    unlabelled = [s for s in task.splits if s != "calibration" and getattr(task, s).labels is None]
    lacking = [split for split in ("train", "calibration", "validation") if split not in task.splits]
    for kind, splits in (("labels in", unlabelled), ("split", lacking)):
        if splits:
            found.append(f"no {kind} {' or '.join(splits)}: what needs it will say so")
    return found


def _labelled_tests(task: Task, known: Mapping[str, Measured], entropy: float, labels: Tensor) -> dict[str, bool]:
    counted = labels[labels >= 0]
    majority, accuracy = float(counted.bincount().max()) / len(counted), known["expert"].accuracy
    return {
        f"its expert is no better than the pretrained model: {_CAUSES}": (
            task.quality(known["expert"]) <= task.quality(known["pretrained"])
        ),
        f"its expert is no better than the largest class ({100 * majority:.1f} %): {_CAUSES}": accuracy <= majority,
        "its expert's probabilities are nearly uniform although it is right: is the logit scale in the head?": (
            entropy > 0.95 and accuracy > majority + 0.1
        ),
    }


def _absent(labels: Tensor | None, classes: int) -> list[int]:
    present = set(range(classes) if labels is None else labels.tolist())
    return [c for c in range(classes) if c not in present][:5]


def table(suite: Suite, probes: Sequence[Probe]) -> Table:
    """Return the figures, a row per task."""
    count = sum(value.numel() for value in suite.task_vectors.base.values())
    title = f"{suite.name}: {count / 1e6:.2f} M numbers in {len(suite.task_vectors.base)} tensors"
    result = Table(title=plain(title, "table.title"))
    figures = [f"{model} {'perplexity' if suite.per_position else '%'}" for model in ("pretrained", "expert")]
    for column in ("task", "classes", "splits", *figures, "score spread", "entropy / ln C", "‖τ‖"):
        result.add_column(column)
    for task, found in zip(suite.tasks, probes, strict=True):
        sizes = " ".join(f"{split} {len(getattr(task, split))}" for split in task.splits)
        cells = (_figure(task, value) for value in (found.pretrained, found.expert))
        rest = (f"{found.spread:.3g}", f"{found.entropy:.2f}", f"{found.distance:.3g}")
        result.add_row(plain(task.name), str(task.classes), sizes, *cells, *rest)
    return result


def _figure(task: Task, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if task.per_position else f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
