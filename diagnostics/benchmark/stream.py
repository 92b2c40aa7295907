"""The roofline of a learned merge's two maps: bytes and operations, what this machine streams, what the maps reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from bounds.types import Params
from diagnostics.benchmark.measuring import Took, draw, told_as_json, took, tower
from diagnostics.benchmark.merge import Precision
from merging import TaskVectors, contract, merged
from merging.commands import console, track
from merging.files import check_destination
from merging.params import partition
from merging.task_vectors import Storage
from merging.task_vectors.storage import destination

STREAM = 2**26
"""Numbers in float32 that are added up or copied to see what the machine streams: far more than a cache holds."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One measured map.

    ``bytes`` are read and written, each once (θ_0, the gradient and θ included); ``operations`` are multiplications and
    additions; ``seconds`` and ``processor_seconds`` are the smallest of the repetitions. ``share`` is bytes per second
    over those of ``add up`` in the same run.
    """

    what: str
    storage: Precision
    bytes: int
    operations: int
    seconds: float
    processor_seconds: float
    share: float
    threads: int


def measure(
    model: str = "ViT-B-32",
    tasks: int = 8,
    storages: tuple[Precision, ...] = ("float32", "bfloat16"),
    repeats: int = 7,
    threads: int = 0,
    json_out: str = "",
) -> None:
    """Measure what this machine streams, and what of it a merge and a contraction of generated task vectors reach.

    Args:
        model: open_clip model whose visual tower has the shapes.
        tasks: number of task vectors.
        storages: precisions of the task vectors.
        repeats: alternating repetitions after one to warm up; the smallest time of each counts.
        threads: torch threads (0: torch's default).
        json_out: also write the figures as JSON to this file (- for standard output, without the table).
    """
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    if threads:
        torch.set_num_threads(threads)
    base = {name: value.detach() for name, value in tower(model).named_parameters()}
    flows = [flow for storage in track(storages, "storages") for flow in _flows(base, tasks, storage, repeats)]
    if told_as_json(flows, json_out):
        return
    _show(model, tasks, flows)


def _flows(base: Params, tasks: int, storage: Precision, repeats: int) -> list[Flow]:
    names = [f"task{t}" for t in range(tasks)]
    with destination(base, names, Storage(getattr(torch, storage)), {}) as stacked:
        draw(stacked)
    vectors, blocks = TaskVectors.from_stacked(base, stacked, names), partition(base, "tensor")
    coefficients = torch.full((tasks, len(blocks)), 1 / tasks)
    theta: dict[str, torch.Tensor] = {}
    numbers, room = torch.ones(STREAM), torch.empty(STREAM)
    entries, size = sum(value.numel() for value in base.values()), sum(value.nbytes for value in stacked.values())
    own = numbers.element_size() * entries
    maps: Mapping[str, tuple[Callable[[], object], int, int]] = {
        "add up": (numbers.sum, numbers.nbytes, STREAM),
        "copy": (lambda: room.copy_(numbers), 2 * numbers.nbytes, 0),
        "merged": (
            lambda: merged(vectors, coefficients, blocks, out=theta),
            size + 2 * own,
            2 * tasks * entries,
        ),
        "contract": (lambda: contract(vectors, base, blocks), size + own, 2 * tasks * entries),
    }
    times: dict[str, list[Took]] = {what: [] for what in maps}
    for repeat in range(repeats + 1):
        for what, (function, _, _) in maps.items():
            taken = took(function)
            if repeat:
                times[what].append(taken)
    wall = {what: min(taken.wall for taken in found) for what, found in times.items()}
    rate = numbers.nbytes / wall["add up"]
    return [
        Flow(
            what=what,
            storage=storage,
            bytes=moved,
            operations=operations,
            seconds=wall[what],
            processor_seconds=min(taken.processor for taken in times[what]),
            share=moved / wall[what] / rate,
            threads=torch.get_num_threads(),
        )
        for what, (_, moved, operations) in maps.items()
    ]


def _show(model: str, tasks: int, flows: Sequence[Flow]) -> None:
    table = Table(
        "task vectors", "what", "GB", "10^9 operations", "seconds", "GB/s", "of processor time", "of the stream"
    )
    table.title = f"{model}, {tasks} tasks, {flows[0].threads} threads"
    for flow in flows:
        table.add_row(
            flow.storage,
            flow.what,
            f"{flow.bytes / 1e9:.2f}",
            f"{flow.operations / 1e9:.2f}",
            f"{flow.seconds:.3f}",
            f"{flow.bytes / flow.seconds / 1e9:.1f}",
            f"{flow.bytes / flow.processor_seconds / 1e9:.1f}",
            f"{flow.share:.0%}",
        )
    console().print(table)
