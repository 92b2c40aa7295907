"""Merge with one method in a process of its own, and measure what came out and what it cost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.autodiff import check_inputs
from bounds.types import Forward, InputError, Inputs, Params, refuse
from merging import suites
from merging.closed_form.scale import SEARCH_SECONDS
from merging.commands.expert_scores import expert_scores
from merging.commands.packed import pack, pack_numbers
from merging.execution import Execution
from merging.learned import PER_POSITION
from merging.measured import Measured
from merging.methods import METHODS, POST_PROCESSINGS, find, merge
from merging.params import norm, subtract
from merging.specification import Specification
from merging.suites import Suite
from merging.task import Task, labels_of

REFERENCES: Mapping[str, Callable[[Suite, int], Params]] = {
    "pretrained": lambda suite, index: suite.task_vectors.base,
    "experts": lambda suite, index: suite.task_vectors.expert(index),
}
"""What merges are compared with: name -> (suite, task) -> weights."""


@dataclass(frozen=True)
class Spec(Specification):
    """A method of the table, or a reference, with the settings that differ from its defaults and what follows it."""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the method, defaults included.

        Raises:
            InputError: unknown method, or a value out of range.
        """
        return {} if self.method in REFERENCES else asdict(find(self.method).settings(**self.given))

    @property
    def draws(self) -> bool:
        """Whether the result depends on a seed that the specification leaves open."""
        return self.method in METHODS and "seed" in self.settings and "seed" not in self.given

    def seeded(self, seeds: Sequence[int]) -> list[Spec]:
        """Return the specification once per seed where it draws, else itself alone.

        The default seed is 0, so that the run of seed 0 has the key of the specification without a seed.
        """
        return [replace(self, given={**self.given, "seed": seed}) for seed in seeds] if self.draws else [self]

    def key(self, suite: Suite) -> str:
        """Hash of the method, its settings, what follows it, and what the suite is.

        Settings that no task of the suite reads are left out: what was kept before there were such settings stays.
        """
        idle = () if suite.per_position else PER_POSITION
        settings = {name: value for name, value in self.settings.items() if name not in idle}
        after = [[name, asdict(POST_PROCESSINGS[name].settings(**given))] for name, given in self.then.items()]
        content = [self.method, settings, suite.identity, *([after] if after else [])]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one merge gave on the test splits, task by task, and what it cost.

    ``accuracy`` in 0..1; ``correct``: which of each task's test examples are right, in the order of the split, packed
    (:mod:`merging.commands.packed`), so that measurements can be compared example by example; of a network that scores
    every position, in place of these, what each example adds to minus the mean cross-entropy of a token (see
    :func:`shares`); ``cross_entropy`` and ``kl`` = KL(expert ‖ merge) in nats, means over a task's test examples, or
    their counted positions (the KL then of 64 classes and the rest: no larger than the exact one); ``distance`` =
    ‖θ_m − θ_0‖ (None for the experts, which are many); ``seconds`` wall time of the merge without its search for a
    scale, which took ``search_seconds`` (None: it did not search); ``passes``: examples that went forward and backward,
    from the merge's history or else counted where the networks are called; ``memory``: peak resident memory in MiB of a
    process that loads the suite and merges, ``memory_before`` its peak before the merge. ``reason`` says why the method
    could not run; then there are no figures.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    accuracy: Sequence[float] = ()
    correct: Sequence[str] = ()
    cross_entropy: Sequence[float] = ()
    kl: Sequence[float] = ()
    distance: float | None = None
    seconds: float | None = None
    search_seconds: float | None = None
    passes: float | None = None
    memory: float | None = None
    memory_before: float | None = None
    reason: str = ""


def measure(
    spec: Spec,
    suite_name: str,
    threads: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    scores: Path | None = None,
) -> Measurement:
    """Load the suite in this process, merge, and score the test splits; a refusal becomes the ``reason``.

    Args:
        spec: the method.
        suite_name: what :func:`merging.suites.load` finds the suite by.
        threads: of PyTorch.
        device: where networks run.
        checkpoint: file that keeps the progress of a learned method, which goes on from it; ``seconds`` and ``passes``
            are then those of the last start.
        scores: folder that keeps the experts' scores, which are the same for every method.
    """
    torch.set_num_threads(threads)
    suite = suites.load(suite_name)
    if spec.method in REFERENCES:
        figures = _figures(suite, partial(REFERENCES[spec.method], suite), spec.method, device, scores)
        found = Measurement(label=spec.label, method=spec.method, settings={}, **figures)
        return replace(found, distance=0.0) if spec.method == "pretrained" else found
    before, count = peak_memory(), [0]
    tasks = [task.changed(forward=_counting(task.forward, count)) for task in suite.tasks]
    try:
        execution = None
        if METHODS[spec.method].executes:
            execution = Execution(device=device, checkpoint=checkpoint, resume=checkpoint is not None)
        artifact = merge(spec.named, suite.task_vectors, tasks, suite=suite.name, execution=execution, **spec.given)
    except InputError as error:
        return Measurement(label=spec.label, method=spec.method, settings=spec.settings, reason=str(error))
    memory, (search,) = peak_memory(), artifact.history.get(SEARCH_SECONDS, [None])
    return Measurement(
        label=spec.label,
        method=spec.method,
        settings=spec.settings,
        **_figures(suite, lambda _: artifact.merged, "merged", device, scores),
        distance=norm(subtract(artifact.merged, suite.task_vectors.base)),
        seconds=artifact.seconds - (search or 0.0),
        search_seconds=search,
        passes=artifact.history.get("passes", count)[-1],
        memory=memory,
        memory_before=before,
    )


def measure_apart(
    spec: Spec,
    suite_name: str,
    threads: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    scores: Path | None = None,
) -> Measurement:
    """Measure in a fresh process (see :func:`measure`), so that no other method's memory counts.

    Raises:
        InputError: the process was killed, as it is when memory runs out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            return pool.submit(measure, spec, suite_name, threads, device, checkpoint, scores).result()
        except BrokenProcessPool:
            cure = "free memory, or leave the method out"
            refuse(f"method {spec.label}", expected="a process that ends", got="one that was killed", cure=cure)


def _end_with_parent() -> None:
    """End at an interrupt without a traceback, and when the process that started this one has ended in any way."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _figures(
    suite: Suite, weights: Callable[[int], Params], model: str, device: str, kept: Path | None
) -> dict[str, Any]:
    def moved(task: Task) -> Task:
        return task.changed(forward=_elsewhere(task.forward, device))

    figures: dict[str, Any] = {"accuracy": [], "correct": [], "cross_entropy": [], "kl": []}
    teachers = expert_scores(suite, moved, device, kept)
    for index, (task, taught) in enumerate(zip(suite.tasks, teachers, strict=True)):
        labels_of(task, "test", f"test {task.chosen_by.replace('_', '-')}")
        found = moved(task).measured(weights(index), "test", model, taught=taught, same=model == "experts")
        assert found.kl is not None
        figures["accuracy"].append(found.accuracy)
        figures["correct"].append(pack_numbers(shares(found)) if task.per_position else pack(found.correct))
        figures["cross_entropy"].append(found.loss)
        figures["kl"].append(found.mean(found.kl))
    return figures


def shares(measured: Measured) -> Tensor:
    """Return numbers [N] whose mean is minus the mean cross-entropy of a counted position: what an example adds to it.

    Examples are what was drawn, positions of one are not independent: errors are taken over examples. The number of
    positions is taken as it is, not as drawn.
    """
    return -measured.cross_entropy * len(measured.positions) / measured.positions.sum()


def _elsewhere(forward: Forward, device: str) -> Forward:
    """Return ``forward`` run on a device, batch by batch, with scores that come back."""
    if device == "cpu":
        return forward
    held: tuple[Params, Params] = ({}, {})

    def run(params: Params, inputs: Inputs) -> torch.Tensor:
        nonlocal held
        if params is not held[0]:
            held = params, {name: value.to(device) for name, value in params.items()}
        moved = inputs.to(device) if isinstance(inputs, torch.Tensor) else {n: v.to(device) for n, v in inputs.items()}
        return forward(held[1], moved).cpu()

    return run


def _counting(forward: Forward, count: list[int]) -> Forward:
    def counted(params: Params, inputs: Inputs) -> torch.Tensor:
        if torch.is_grad_enabled() and any(value.requires_grad for value in params.values()):
            count[0] += check_inputs(inputs)
        return forward(params, inputs)

    return counted


def peak_memory() -> float:
    """Peak resident memory of this process in MiB.

    On Linux from /proc: ``getrusage`` would start a new process at the memory of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
