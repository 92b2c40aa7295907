"""Cost of a report, section by section: passes of the network, seconds, memory, and what is kept on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bounds.types import Forward, Params, Sample, refuse
from diagnostics.benchmark.measuring import (
    CLASSES,
    MIB,
    cosine_head,
    own_folder,
    peak_memory,
    private_bytes,
    small_vit,
    told_as_json,
    took,
    tower,
)
from diagnostics.report import build, check_sections
from diagnostics.sections.table import SECTIONS
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import Task, TaskVectors, merge
from merging.commands import console, track
from merging.files import check_destination
from merging.suites import Suite
from merging.task import score
from merging.task_vectors import Storage
from merging.task_vectors.storage import destination

SIZE = 1e-3
"""Standard deviation of the generated task vectors' entries: that of θ_0's is about 2e-2."""
TINY = "tiny"
"""The small ViT of the benchmarks, to see the command work."""
WHOLE = "whole report"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a section cost; work that sections share counts for the first that asks for it.

    ``passes`` are the multiplications of everything that was computed, in units of a forward pass of one example;
    ``an_example`` are they over the held-out and training examples of all tasks. ``processor_seconds`` are those of all
    threads: they change less when others use the cores. ``private_bytes`` is the most memory of the process that
    belongs to no file; ``cache_bytes`` is what the section left on the disk.
    """

    section: str
    passes: float
    an_example: float
    seconds: float
    processor_seconds: float
    private_bytes: int
    cache_bytes: int


def measure(
    model: str = "ViT-B-32",
    tasks: int = 8,
    held_out: int = 4,
    train: int = 8,
    kernel: int = 4,
    examples: int = 4,
    points: int = 9,
    sections: tuple[str, ...] = (),
    folder: Path | None = None,
    threads: int = 0,
    json_out: str = "",
) -> None:
    """Report on the average of generated experts: passes, seconds, private memory and cache bytes of every section.

    The experts are random, with the model's shapes, in a mapped file; images are random, too, and labels are what the
    model without experts says. One process.

    Args:
        model: open_clip model whose visual tower is merged (random weights), or tiny.
        tasks: number of experts.
        held_out: held-out examples of each task; the test split has as many, or ``examples``.
        train: training examples of each task.
        kernel: training examples of each task for the trace of the kernel.
        examples: validation and calibration examples of each task.
        points: points of the sweep.
        sections: only these (default: all).
        folder: where the mapped file and the cache are made, and removed; by default the system's.
        threads: torch threads (0: torch's default).
        json_out: also write the costs as JSON to this file (- for standard output, without the table).
    """
    for what, given, least in (("tasks", tasks, 2), ("examples", examples, 2)):
        if given < least:
            refuse(what, expected=f"at least {least}", got=given, cure="raise it")
    settings = Settings(held_out=held_out, train=train, kernel=kernel, points=points)
    chosen = sorted(check_sections(sections), key=lambda name: SECTIONS[name].late)
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    with own_folder(folder) as place:
        suite = _suite(model, tasks, settings, examples, place / "task_vectors.safetensors")
        costs = _costs(suite, settings, chosen, place / "cache")
    if told_as_json(costs, json_out):
        return
    _show(costs, f"{model}, {tasks} tasks, {held_out} held-out and {train} training examples each")


def _suite(model: str, count: int, settings: Settings, examples: int, file: Path) -> Suite:
    """Generate experts in a mapped file, and tasks with random images, whose labels are what θ_0 says."""
    if model == TINY:
        (forward, base), side = small_vit(), 32
    else:
        module = tower(model)
        (forward, base), side = cosine_head(module, module.output_dim), module.image_size[0]
    base = {name: value.detach() for name, value in base.items()}
    names = [f"task{t}" for t in range(count)]
    generator = torch.Generator().manual_seed(0)
    with destination(base, names, Storage(torch.float32, file), {}) as stacked:
        for tensor in stacked.values():
            for delta in tensor:
                delta.copy_(SIZE * torch.randn(delta.shape, generator=generator))
    sizes = {
        "train": settings.train,
        "calibration": examples,
        "validation": examples,
        "test": max(settings.held_out, examples),
    }
    shape = (3, side, side)
    tasks = [_task(name, forward, base, shape, sizes, generator) for name in names]
    return Suite("generated", TaskVectors.open(file, verified=True), tasks, sources={"generated": "seed 0"})


def _task(
    name: str,
    forward: Forward,
    base: Params,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    generator: torch.Generator,
) -> Task:
    def sample(size: int, labelled: bool) -> Sample:
        images = torch.randn(size, *shape, generator=generator)
        return Sample(images, score(forward, base, images).argmax(dim=1) if labelled else None)

    splits: dict[str, Any] = {split: sample(size, split != "calibration") for split, size in sizes.items()}
    return Task(name, forward, [str(c) for c in range(CLASSES)], **splits)


def _costs(suite: Suite, settings: Settings, sections: Sequence[str], cache: Path) -> list[Cost]:
    """Build the sections one after the other in one workspace, as a report does."""
    artifact = merge("average", suite)
    workspace = Workspace([Subject("average", "in memory", artifact)], lambda: suite, settings, Cache(cache))
    workspace.prepare()
    per_pass = _one_pass(suite)
    examples = len(suite.tasks) * (settings.held_out + settings.train)

    def cost(section: str) -> Cost:
        before, kept = private_bytes(), _size(cache)
        with Multiplications() as counted, peak_memory(private_bytes) as growth:
            spent = took(lambda: _make(workspace, section))
        passes = counted.total / per_pass
        return Cost(
            section=section,
            passes=passes,
            an_example=passes / examples,
            seconds=spent.wall,
            processor_seconds=spent.processor,
            private_bytes=before + growth[0],
            cache_bytes=_size(cache) - kept,
        )

    costs = [cost(section) for section in track(sections, "sections")]
    return [*costs, _whole(costs)]


def _make(workspace: Workspace, section: str) -> None:
    report = build(workspace, [section])
    if getattr(report.merges[0], section) is None:
        reason = report.provenance.missing[f"average: {section}"]
        refuse(f"section {section}", expected="a section", got=reason, cure="measure the others")


def _whole(costs: Sequence[Cost]) -> Cost:
    return Cost(
        section=WHOLE,
        passes=sum(cost.passes for cost in costs),
        an_example=sum(cost.an_example for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        processor_seconds=sum(cost.processor_seconds for cost in costs),
        private_bytes=max(cost.private_bytes for cost in costs),
        cache_bytes=sum(cost.cache_bytes for cost in costs),
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _one_pass(suite: Suite) -> int:
    """Multiplications of a forward pass of one example."""
    task = suite.tasks[0]
    with torch.no_grad(), Multiplications() as counted:
        task.forward(suite.task_vectors.base, task.test.take(slice(1)).inputs)
    return counted.total


class Multiplications(TorchDispatchMode):
    """Counts floating-point operations of matrix products, convolutions and attention while it is entered.

    It stands below automatic differentiation: what derivatives and vmap compute is seen as plain operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        given = dict(kwargs or {})
        result = func(*args, **given)
        packet = func.overloadpacket
        if packet in _FORMULAS:
            self.total += _FORMULAS[packet](*args)
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **given, out_val=result)
        return result


def _attention(query: Tensor, *others: Any) -> int:
    """Operations of PyTorch's attention in one piece: four projections and two products of all pairs of tokens."""
    n, tokens, width = query.shape
    return 2 * n * tokens * (4 * width * width + 2 * tokens * width)


_FORMULAS: Mapping[Any, Callable[..., int]] = {torch.ops.aten._native_multi_head_attention: _attention}
"""What PyTorch's own table of formulas lacks."""


def _show(costs: Sequence[Cost], title: str) -> None:
    table = Table("section", title=f"{title}, {torch.get_num_threads()} threads")
    for column in ("passes", "an example", "seconds", "CPU (s)", "private peak (MiB)", "cache (MB)"):
        table.add_column(column, justify="right")
    for cost in costs:
        if cost.section == WHOLE:
            table.add_section()
        table.add_row(
            cost.section,
            f"{cost.passes:.0f}",
            f"{cost.an_example:.1f}",
            f"{cost.seconds:.1f}",
            f"{cost.processor_seconds:.1f}",
            f"{cost.private_bytes / MIB:.0f}",
            f"{cost.cache_bytes / 1e6:.2f}",
        )
    console().print(table)
