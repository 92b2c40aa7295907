"""A step of a learned merge on several processes: what travels, what each reads and keeps, how long it takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from bounds.types import Forward, Params, Sample, refuse
from diagnostics.benchmark.measuring import (
    CLASSES,
    MIB,
    cosine_head,
    peak_memory,
    private_bytes,
    told_as_json,
    tower,
    tower_shapes,
)
from merging import Task, TaskVectors
from merging.commands import console
from merging.execution import Execution
from merging.files import check_destination
from merging.learned import LearnedSettings, Problem, init, prepare, update
from merging.learned.perturbations import PERTURBATIONS
from merging.processes import Processes, processes
from merging.task_vectors import Storage
from merging.task_vectors.storage import destination

Precision = Literal["float32", "bfloat16", "float16"]
SIZE = 1e-3
"""Standard deviation of the generated task vectors' entries."""
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one pass in one process, exact.

    ``sent`` as ``bytes_sent`` of a merge's history counts them; ``read`` of task vectors by the two maps; ``kept`` of
    task vectors that the maps touch, in memory or in a mapped file.
    """

    sent: float
    read: float
    kept: float

    @staticmethod
    def of(weights: int, tasks: int, blocks: int, item: int, size: int, *, sharded: bool) -> Traffic:
        """Count them for P float32 weights, T task vectors of ``item`` bytes a number, λ [T, L] and N processes."""
        if size == 1:
            return Traffic(sent=0, read=2 * tasks * weights * item, kept=tasks * weights * item)
        small = 8 * (tasks * blocks + tasks + 1)
        if not sharded:
            return Traffic(sent=small, read=2 * tasks * weights * item, kept=tasks * weights * item)
        part = -(-weights // size)
        parts = 2 * (size - 1) * part * 4  # θ is gathered, ∇_θ scattered, both in float32
        guards = 2 * 8  # before each of the two, whether all processes are well
        return Traffic(sent=small + guards + parts, read=2 * tasks * part * item, kept=tasks * part * item)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured way. Numbers are of the first process; seconds and memory the largest of all.

    ``step_cpu_seconds`` are those of a process, which other work on the machine lengthens less than ``step_seconds``.
    ``bytes_sent`` of a step as the history counts them; ``bytes_on_the_way``: what the machine sent to itself in the
    step, whoever sent it, over the number of processes; ``bytes_read``: of task vectors in the step.
    """

    model: str
    tasks: int
    batch: int
    storage: Precision
    perturbation: str
    processes: int
    sharded: bool
    step_seconds: float
    step_cpu_seconds: float
    bytes_sent: float
    bytes_on_the_way: float
    bytes_read: int
    peak_private_bytes: int
    coefficients: list[float]


def measure(
    model: str = "ViT-B-32",
    tasks: int = 8,
    batch: int = 2,
    storage: Precision = "bfloat16",
    perturbation: str = "none",
    steps: int = 1,
    folder: Path = Path(),
    json_out: str = "",
) -> None:
    """Measure a step on the processes that torchrun started: whole weights in each, and weights by parts.

    torchrun --nproc-per-node 4 -m diagnostics.benchmark processes. The way that is measured first and the other one
    take the same examples; the largest difference of their λ is printed. One thread in each process.

    Args:
        model: open_clip model whose visual tower is merged (random weights).
        tasks: number of experts.
        batch: examples of each task in a step.
        storage: precision of the task vectors, in a mapped file that all processes share.
        perturbation: row of the table of perturbations with one or two passes.
        steps: steps that are timed, after one that is not; the fastest counts.
        folder: where the mapped file is made (and removed).
        json_out: also write the cases as JSON to this file (- for standard output, without the table).
    """
    if perturbation not in PERTURBATIONS or PERTURBATIONS[perturbation].passes not in ("1", "2"):
        known = [key for key, row in PERTURBATIONS.items() if row.passes in ("1", "2")]
        refuse("perturbation", expected=" or ".join(known), got=repr(perturbation), cure="choose from these")
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    torch.set_num_threads(1)
    settings = LearnedSettings(perturbation=perturbation, batch=batch, examples=2 * batch, learning_rate=1e-4)
    with processes() as together, _experts(model, tasks, batch, storage, folder, together) as (vectors, given):
        ways = [False] if together.size == 1 else [False, True]
        cases = [_case(vectors, given, settings, together, (model, storage), steps, sharded) for sharded in ways]
        first = together.rank == 0
    if first:
        _tell(cases, json_out)


@contextmanager
def _experts(
    model: str, tasks: int, batch: int, storage: Precision, folder: Path, together: Processes
) -> Iterator[tuple[TaskVectors, list[Task]]]:
    """Generate task vectors in one mapped file, made by the first process, and tasks with random images."""
    torch.manual_seed(0)
    module = tower(model)
    forward, base = cosine_head(module, module.output_dim)
    base = {name: value.detach() for name, value in base.items()}
    names = [f"task{t}" for t in range(tasks)]
    with tempfile.TemporaryDirectory(dir=folder, prefix="mergebound.") as own:
        file = Path(together.broadcast(own)) / "task_vectors.safetensors"
        vectors = together.in_turn(lambda: _generated(base, names, Storage(getattr(torch, storage), file)))
        side = module.image_size[0]
        images = torch.randn(2 * batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        yield vectors, [_task(name, forward, images) for name in names]
        together.gather(lambda: None)  # the first process removes the file when nobody reads it any more


def _generated(base: Params, names: Sequence[str], kept: Storage) -> TaskVectors:
    """Open the mapped file, or write random task vectors to it."""
    assert kept.file is not None
    if not kept.file.is_file():
        generator = torch.Generator().manual_seed(0)
        with destination(base, names, kept, {}) as stacked:
            for tensor in stacked.values():
                for delta in tensor:
                    delta.copy_(SIZE * torch.randn(delta.shape, generator=generator))
    return TaskVectors.open(kept.file, verified=True)


def _task(name: str, forward: Forward, images: torch.Tensor) -> Task:
    one = Sample(images[:1], torch.zeros(1, dtype=torch.int64))
    classes = [str(c) for c in range(CLASSES)]
    return Task(name, forward, classes, train=one, calibration=Sample(images), validation=one, test=one)


def _case(
    vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: LearnedSettings,
    together: Processes,
    names: tuple[str, Precision],
    steps: int,
    sharded: bool,
) -> Case:
    before, seconds, cpu, way = private_bytes(), [], [], []
    with peak_memory(private_bytes) as growth:
        problem = prepare(vectors, tasks, settings, Execution(processes=together, sharded=sharded))
        state = init(problem)
        for _ in range(steps + 1):
            together.gather(lambda: None)
            sent, started, used = _sent_to_itself(), time.perf_counter(), time.process_time()
            update(problem, state)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
            together.gather(lambda: None)
            way.append(_sent_to_itself() - sent)
    return Case(
        model=names[0],
        tasks=len(tasks),
        batch=settings.batch,
        storage=names[1],
        perturbation=settings.perturbation,
        processes=together.size,
        sharded=sharded,
        step_seconds=_slowest(together, seconds),
        step_cpu_seconds=_slowest(together, cpu),
        bytes_sent=state.history["bytes_sent"][-1],
        bytes_on_the_way=min(way[1:]) / together.size,
        bytes_read=2 * int(PERTURBATIONS[settings.perturbation].passes) * _touched(problem),
        peak_private_bytes=max(together.gather(lambda: before + growth[0])),
        coefficients=state.coefficients.detach().flatten().tolist(),
    )


def _slowest(together: Processes, seconds: Sequence[float]) -> float:
    """Return the time of the fastest step but the first, in the process that took longest for it."""
    return min(max(times) for times in list(zip(*together.gather(lambda: seconds), strict=True))[1:])


def _touched(problem: Problem) -> int:
    """Bytes of task vectors that the two maps read in this process."""
    vectors = problem.task_vectors if problem.shard is None else problem.shard.vectors
    return 0 if vectors is None else sum(tensor.nbytes for tensor in vectors.stacked.values())


def _sent_to_itself() -> int:
    """Bytes that this machine sent to itself since it started (Linux)."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.lstrip().startswith("lo:"))


def _tell(cases: Sequence[Case], json_out: str) -> None:
    if told_as_json(cases, json_out):
        return
    one = cases[0]
    title = f"{one.model}, {one.tasks} tasks, batch {one.batch}, {one.storage}, {one.processes} processes, a step"
    table = Table(
        "weights", "step (s)", "CPU (s)", "sent (MB)", "on the way (MB)", "read (GB)", "private peak (MiB)", title=title
    )
    for case in cases:
        table.add_row(
            "by parts" if case.sharded else "whole",
            f"{case.step_seconds:.2f}",
            f"{case.step_cpu_seconds:.2f}",
            f"{case.bytes_sent / 1e6:.3f}",
            f"{case.bytes_on_the_way / 1e6:.3f}",
            f"{case.bytes_read / GB:.3f}",
            f"{case.peak_private_bytes / MIB:.0f}",
        )
    output = console()
    output.print(table)
    if len(cases) > 1:
        apart = torch.tensor(cases[0].coefficients) - torch.tensor(cases[1].coefficients)
        output.print(f"largest difference of a coefficient: {float(apart.abs().max()):.1e}", highlight=False)


def plan(
    *,
    read_rate: float,
    network_rate: float,
    example_seconds: float,
    model: str = "ViT-B-32",
    tasks: int = 200,
    sizes: tuple[int, ...] = (1, 8, 64, 512),
    batch: int = 8,
    storage: Precision = "bfloat16",
) -> None:
    """Count on paper what a pass costs on each number of processes; seconds follow from the rates that are given.

    Nothing is run. Bytes are exact; seconds are reading, sending and passes one after the other, at rates that are
    assumed to hold for every process at once.

    Args:
        read_rate: GB of task vectors that a process reads in a second.
        network_rate: GB that a process sends in a second while it receives as much.
        example_seconds: seconds that a process takes for the forward and backward pass of one example.
        model: open_clip model whose visual tower is merged.
        tasks: number of experts T.
        sizes: numbers of processes N.
        batch: examples of each task in a pass.
        storage: precision of the task vectors.
    """
    for name, value in (("read_rate", read_rate), ("network_rate", network_rate), ("example_seconds", example_seconds)):
        if not value > 0:
            refuse(name, expected="a positive number", got=value, cure="measure it")
    if min(*sizes, tasks, batch) < 1:
        refuse("sizes, tasks and batch", expected="at least 1", got=(sizes, tasks, batch), cure="raise them")
    found = tower_shapes(model)
    weights, blocks = sum(shape.numel() for shape in found.values()), len(found)  # a coefficient per task and tensor
    item = getattr(torch, storage).itemsize
    title = f"{model}: {weights / 1e6:.1f} M weights, {tasks} experts in {storage}, batch {batch}: a pass"
    table = Table("processes", "weights", "sent (MB)", "read (GB)", "touched (GB)", "read (s)", title=title)
    for name in ("send (s)", "pass (s)", "all (s)", "speed-up"):
        table.add_column(name, justify="right")
    alone = 0.0
    for size, sharded in [(size, sharded) for size in sizes for sharded in (False, True) if size > 1 or not sharded]:
        traffic = Traffic.of(weights, tasks, blocks, item, size, sharded=sharded)
        parts = traffic.read / GB / read_rate, traffic.sent / GB / network_rate
        times = (*parts, -(-tasks * batch // size) * example_seconds)
        alone = alone or sum(times)
        table.add_row(
            str(size),
            "by parts" if sharded else "whole",
            f"{traffic.sent / 1e6:.2f}",
            f"{traffic.read / GB:.2f}",
            f"{traffic.kept / GB:.2f}",
            *(f"{time:.3f}" for time in (*times, sum(times))),
            f"{alone / sum(times):.1f}",
        )
    console().print(table)
