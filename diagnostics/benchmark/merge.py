"""Cost of a step of a learned merge: against the plain passes of its network on the same batches, timed alternately."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from bounds.scores import log_probabilities, mean_kl
from bounds.types import Forward, Params, Sample, refuse
from diagnostics.benchmark.measuring import (
    CLASSES,
    MIB,
    Took,
    cosine_head,
    draw,
    faster,
    peak_memory,
    private_bytes,
    told_as_json,
    took,
    tower,
)
from merging import Task, TaskVectors
from merging.commands import console, track
from merging.execution import Autocast, Execution
from merging.files import check_destination
from merging.learned import LearnedSettings, init, prepare, update
from merging.learned.perturbations import PERTURBATIONS
from merging.task_vectors import Storage
from merging.task_vectors.storage import destination

Precision = Literal["float32", "bfloat16", "float16"]
Place = Literal["memory", "mapped"]
PassesIn = Literal["auto", "none", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured kind of step.

    ``ratio`` is a step over as many plain passes as it takes, half of them timed before it and half after: the median
    of the repetitions, with ``ratio_lowest`` and ``ratio_highest``; ``processor_ratio`` is that of processor seconds,
    ``floor_seconds`` and ``step_seconds`` are medians. ``bytes_read`` counts the task vectors read in a step;
    ``peak_private_bytes`` is the most memory of the process that belongs to no file, from the teachers' scores to the
    end of a step (with task vectors in memory, they are in it).
    """

    model: str
    tasks: int
    batch: int
    storage: Precision
    place: Place
    autocast: Autocast
    perturbation: str
    passes: int
    repeats: int
    floor_seconds: float | None
    step_seconds: float
    ratio: float | None
    ratio_lowest: float | None
    ratio_highest: float | None
    processor_ratio: float | None
    steps_per_second: float
    bytes_read: int
    file_bytes: int
    peak_private_bytes: int
    threads: int


def measure(
    model: str = "ViT-B-32",
    tasks: int = 8,
    batch: int = 2,
    storages: tuple[Precision, ...] = ("float32", "bfloat16"),
    perturbations: tuple[str, ...] = ("none", "coefficients", "weights"),
    place: Place = "memory",
    folder: Path = Path(),
    passes_in: PassesIn = "auto",
    repeats: int = 3,
    minutes: float = 4.0,
    threads: int = 0,
    floor: bool = True,
    json_out: str = "",
) -> None:
    """Measure a step of a learned merge of generated experts: ratio to plain passes, bytes, memory, steps per second.

    The floor's passes run in the same precision as the step's.

    Args:
        model: open_clip model whose visual tower is merged (random weights).
        tasks: number of experts.
        batch: examples of each task in a step.
        storages: precisions of the task vectors.
        perturbations: rows of the table of perturbations with one or two passes.
        place: where task vectors are: memory, or a mapped file.
        folder: where the mapped file is made (and removed); the command says how large it is.
        passes_in: autocast of passes with task vectors in half precision; auto is bfloat16 where this processor
            multiplies bfloat16 faster than float32, as measured at the start. Processors without instructions for it
            take many times longer.
        repeats: repetitions at the most; medians are shown, with the range of the ratios.
        minutes: time for the repetitions of all cases together; each case has one repetition at least.
        threads: torch threads (0: torch's default).
        floor: time the plain passes, too; without them the first step is the one that is timed.
        json_out: also write the cases as JSON to this file (- for standard output, without the table).
    """
    _check_perturbations(perturbations)
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    if place == "memory" and folder != Path():
        refuse("folder", expected="--place mapped", got="--place memory", cure="leave --folder out")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = tower(model)
    half = passes_in if passes_in != "auto" else "bfloat16" if faster(torch.bfloat16) else "none"
    effort = _Effort(repeats if floor else 0, 60 * minutes / (len(storages) * len(perturbations)))
    cases = []
    for storage in track(storages, "storages"):
        autocast = "none" if storage == "float32" else half
        experts = _Experts(module, tasks, storage, place, folder, batch, autocast)
        try:
            cases += [_case(experts, model, perturbation, effort) for perturbation in track(perturbations, storage)]
        finally:
            experts.remove()
    if told_as_json(cases, json_out):
        return
    _show(cases)


def _check_perturbations(names: Sequence[str]) -> None:
    known = [key for key, row in PERTURBATIONS.items() if row.passes in ("1", "2")]
    for name in names:
        if name not in known:
            refuse("perturbation", expected=" or ".join(known), got=repr(name), cure="choose from these")


@dataclass(frozen=True)
class _Effort:
    """Repetitions of a case at the most (0: no floor), and the seconds after which none is begun."""

    repeats: int
    seconds: float


class _Experts:
    """Generated task vectors of a tower, tasks with random images, and the plain network."""

    def __init__(
        self,
        module: Any,
        count: int,
        storage: Precision,
        place: Place,
        folder: Path,
        batch: int,
        autocast: Autocast,
    ) -> None:
        self.storage: Precision = storage
        self.place: Place = place
        self.batch = batch
        self.autocast: Autocast = autocast
        self.forward, base = cosine_head(module, module.output_dim)
        base = {name: value.detach() for name, value in base.items()}
        self.folder = tempfile.TemporaryDirectory(dir=folder, prefix="mergebound.") if place == "mapped" else None
        self.file = Path(self.folder.name) / "task_vectors.safetensors" if self.folder else None
        names = [f"task{t}" for t in range(count)]
        kept = Storage(getattr(torch, storage), self.file)
        with destination(base, names, kept, {}) as stacked:
            draw(stacked)
        self.vectors = (
            TaskVectors.open(self.file, verified=True) if self.file else TaskVectors.from_stacked(base, stacked, names)
        )
        side = module.image_size[0]
        self.images = torch.randn(2 * batch, 3, side, side, generator=torch.Generator().manual_seed(1))
        self.tasks = [_task(name, self.forward, self.images) for name in names]

    def remove(self) -> None:
        """Remove the mapped file, and the folder of its own that it lies in: nobody else's file is touched."""
        if self.folder is not None:
            self.folder.cleanup()


def _task(name: str, forward: Forward, images: Tensor) -> Task:
    one = Sample(images[:1], torch.zeros(1, dtype=torch.int64))
    return Task(
        name, forward, [str(c) for c in range(CLASSES)], train=one, calibration=Sample(images), validation=one, test=one
    )


def _case(experts: _Experts, model: str, perturbation: str, effort: _Effort) -> Case:
    settings = LearnedSettings(
        perturbation=perturbation, batch=experts.batch, examples=len(experts.images), learning_rate=1e-4
    )
    execution = Execution(autocast=experts.autocast)
    before = private_bytes()
    with peak_memory(private_bytes) as growth:
        problem = prepare(experts.vectors, experts.tasks, settings, execution)
        state = init(problem)
        first = took(lambda: update(problem, state))
    passes = int(PERTURBATIONS[perturbation].passes)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in experts.vectors.base.items()}

    def plain() -> None:
        _plain_pass(experts.forward, leaves, experts.images, problem.teacher_scores, experts.batch, execution)

    pairs = _repeat(plain, lambda: update(problem, state), passes, effort)
    ratios = [step.wall / floor.wall for floor, step in pairs]
    step_seconds = median(step.wall for _, step in pairs) if pairs else first.wall
    size = sum(tensor.nbytes for tensor in experts.vectors.stacked.values())
    return Case(
        model=model,
        tasks=len(experts.tasks),
        batch=experts.batch,
        storage=experts.storage,
        place=experts.place,
        autocast=experts.autocast,
        perturbation=perturbation,
        passes=passes,
        repeats=len(pairs),
        floor_seconds=median(floor.wall for floor, _ in pairs) if pairs else None,
        step_seconds=step_seconds,
        ratio=median(ratios) if pairs else None,
        ratio_lowest=min(ratios) if pairs else None,
        ratio_highest=max(ratios) if pairs else None,
        processor_ratio=median(step.processor / floor.processor for floor, step in pairs) if pairs else None,
        steps_per_second=1 / step_seconds,
        bytes_read=2 * passes * size,  # one merge and one contraction a pass, each reads every task vector once
        file_bytes=0 if experts.file is None else experts.file.stat().st_size,
        peak_private_bytes=before + growth[0],
        threads=torch.get_num_threads(),
    )


def _repeat(
    plain: Callable[[], object], step: Callable[[], object], passes: int, effort: _Effort
) -> list[tuple[Took, Took]]:
    """Time a plain pass, a (warm) step and a plain pass, again and again: pairs of ``passes`` plain passes and a step.

    What the machine does besides changes slowly, so that it weighs on both sides of a pair.
    """
    pairs: list[tuple[Took, Took]] = []
    if not effort.repeats:
        return pairs
    plain()
    end = time.perf_counter() + effort.seconds
    while len(pairs) < effort.repeats and (not pairs or time.perf_counter() < end):
        before, taken, after = took(plain), took(step), took(plain)
        share = passes / 2
        floor = Took(share * (before.wall + after.wall), share * (before.processor + after.processor))
        pairs.append((floor, taken))
    return pairs


def _plain_pass(
    forward: Forward, theta: Params, images: Tensor, teachers: Sequence[Tensor], batch: int, execution: Execution
) -> None:
    """Forward and backward of every task's batch through one network: what any learning on these batches costs."""
    for value in theta.values():
        value.grad = None
    with execution.passes():
        for teacher in teachers:
            scores = forward(theta, images[:batch]).float()
            loss = mean_kl(log_probabilities(teacher[:batch]), log_probabilities(scores))
            (loss / len(teachers)).backward()


def _show(cases: Sequence[Case]) -> None:
    first = cases[0]
    title = f"{first.model}, {first.tasks} tasks, batch {first.batch} a task, {first.threads} threads"
    table = Table(
        "storage",
        "place",
        "passes in",
        "perturbation",
        "step (s)",
        "plain passes (s)",
        "ratio (range)",
        "of processor time",
        "read (GB)",
        title=title,
    )
    table.add_column("private peak (MiB)", justify="right")
    table.add_column("steps/s", justify="right")
    for case in cases:
        table.add_row(
            case.storage,
            case.place,
            "float32" if case.autocast == "none" else case.autocast,
            case.perturbation,
            f"{case.step_seconds:.2f}",
            "" if case.floor_seconds is None else f"{case.passes} in {case.floor_seconds:.2f}",
            "" if case.ratio is None else f"{case.ratio:.3f} ({case.ratio_lowest:.3f} to {case.ratio_highest:.3f})",
            "" if case.processor_ratio is None else f"{case.processor_ratio:.3f}",
            f"{case.bytes_read / 1e9:.1f}",
            f"{case.peak_private_bytes / MIB:.0f}",
            f"{case.steps_per_second:.3f}",
        )
    output = console()
    output.print(table)
    if first.file_bytes:
        output.print("mapped files: " + ", ".join(f"{case.file_bytes / 1e9:.1f} GB" for case in cases))
