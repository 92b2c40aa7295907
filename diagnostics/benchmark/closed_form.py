"""Cost of merges in closed form from files to a file: generated experts, each method in a process of its own."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import save_file

from bounds.types import refuse
from diagnostics.benchmark.measuring import MIB, own_folder, peak_memory, private_bytes, told_as_json, tower_shapes
from merging import TaskVectors
from merging.artifact import save
from merging.checkpoints import map_safetensors
from merging.commands import console, track
from merging.commands.compare import parse
from merging.commands.measure import REFERENCES, Spec
from merging.files import check_destination
from merging.methods import find, merge, needs_of
from merging.rows import VALIDATION

METHODS = ("average", "task_arithmetic:scale=0.3", "dare_linear:scale=0.3", "slerp", "ties:scale=1")
SIZES = {"base": 2e-2, "expert": 1e-3}
"""Standard deviation of θ_0's entries, and of what an expert adds to them."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Seconds of CPU and of the clock for each stage of one merge, and the growth of its private memory.

    ``read``: files are mapped and θ_0 is checked; ``merge`` reads the experts' numbers where they lie; ``write``: the
    artifact. ``peak_private_bytes``: the most memory that belongs to no file, above what the process had before it
    merged, in a second run (sampling it takes time).
    """

    method: str
    model: str
    tasks: int
    threads: int
    read_cpu: float
    read_wall: float
    merge_cpu: float
    merge_wall: float
    write_cpu: float
    write_wall: float
    peak_private_bytes: int
    expert_bytes: int

    @property
    def cpu(self) -> float:
        """CPU seconds of the three stages."""
        return self.read_cpu + self.merge_cpu + self.write_cpu


def measure(
    model: str = "ViT-B-32",
    tasks: int = 8,
    methods: tuple[str, ...] = METHODS,
    folder: Path | None = None,
    threads: int = 1,
    json_out: str = "",
) -> None:
    """Measure reading, merging and writing of generated experts: seconds and memory of each method.

    Args:
        model: open_clip model of whose visual tower the experts have the shapes (random values, float32).
        tasks: number of experts; methods that merge two take the first two.
        methods: closed-form rows that look at no examples, with settings as ties:density=0.1,scale=1.
        folder: where the experts are made, in a temporary folder that is removed; by default the system's.
        threads: torch threads.
        json_out: also write the cases as JSON to this file (- for standard output, without the table).
    """
    if tasks < 2 or threads < 1:
        refuse("tasks and threads", expected="at least 2 and 1", got=f"{tasks} and {threads}", cure="raise them")
    specs = [_checked(spec) for spec in parse(methods) if spec.method not in REFERENCES]
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    with _experts(model, tasks, folder) as files:
        cases = [_apart(spec, model, files, threads) for spec in track(specs, "methods")]
    if told_as_json(cases, json_out):
        return
    _show(cases)


def _checked(spec: Spec) -> Spec:
    """Refuse a method that would look at examples: there are none here."""
    row = find(spec.method)
    needs = needs_of(spec.method, spec.given, spec.then)
    if row.executes or needs - VALIDATION:
        got = " and ".join(sorted(needs)) or "passes through a network"
        refuse(f"method {spec.label}", expected="one that looks at no examples", got=got, cure="leave it out")
    if needs:
        cure = f"write {spec.method}:scale=0.3, and +lines:rise=0.5"
        refuse(f"method {spec.label}", expected="a scale", got="a search on validation examples", cure=cure)
    return spec


@contextmanager
def _experts(model: str, tasks: int, folder: Path | None) -> Iterator[list[Path]]:
    """Write θ_0 and T experts below a temporary folder: their files, θ_0's first."""
    shapes = tower_shapes(model)
    size = 4 * sum(shape.numel() for shape in shapes.values())
    with own_folder(folder) as place:
        free, needed = shutil.disk_usage(place).free, (tasks + 2) * size
        if free < needed:
            got = f"{free / 1e9:.1f} GB"
            refuse(
                f"disk of {place}", expected=f"{needed / 1e9:.1f} GB of room", got=got, cure="choose another --folder"
            )
        files = [place / "base.safetensors", *(place / f"task{t}.safetensors" for t in range(tasks))]
        base = _random(shapes, SIZES["base"], 0)
        save_file(base, files[0])
        for index, file in enumerate(track(files[1:], "experts")):
            expert = _random(shapes, SIZES["expert"], index + 1)
            save_file({key: value.add_(base[key]) for key, value in expert.items()}, file)
        del base
        yield files


def _random(shapes: dict[str, torch.Size], size: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).mul_(size) for name, shape in shapes.items()}


def _apart(spec: Spec, model: str, files: Sequence[Path], threads: int) -> Case:
    """Measure in a fresh process, which has neither the memory nor the buffers of another method."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_case, spec, model, files, threads).result()


def _case(spec: Spec, model: str, files: Sequence[Path], threads: int) -> Case:
    torch.set_num_threads(threads)
    count = find(spec.method).tasks or len(files) - 1
    base, experts = files[0], files[1 : count + 1]
    clock = [_now()]
    vectors = _open(base, experts)
    clock.append(_now())
    artifact = merge(spec.named, vectors, (), **spec.given)
    clock.append(_now())
    save(artifact, base.parent / "out.pt")
    clock.append(_now())
    del artifact, vectors
    with peak_memory(private_bytes) as growth:
        merge(spec.named, _open(base, experts), (), **spec.given)
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(clock)]
    return Case(
        method=spec.label,
        model=model,
        tasks=count,
        threads=threads,
        read_cpu=spent[0][0],
        read_wall=spent[0][1],
        merge_cpu=spent[1][0],
        merge_wall=spent[1][1],
        write_cpu=spent[2][0],
        write_wall=spent[2][1],
        peak_private_bytes=growth[0],
        expert_bytes=experts[0].stat().st_size,
    )


def _open(base: Path, experts: Sequence[Path]) -> TaskVectors:
    return TaskVectors.on_demand(map_safetensors(base), {file.stem: map_safetensors(file) for file in experts})


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _show(cases: Sequence[Case]) -> None:
    first = cases[0]
    size = first.expert_bytes / 1e6
    table = Table(
        "method",
        "experts",
        title=f"{first.model}, files to a file, {first.threads} threads, {size:.0f} MB an expert; seconds: CPU (wall)",
    )
    for column in ("read", "merge", "write", "all", "private peak (MiB)"):
        table.add_column(column, justify="right")
    for case in cases:
        stages = ("read", "merge", "write")
        shown = [f"{getattr(case, f'{s}_cpu'):.2f} ({getattr(case, f'{s}_wall'):.2f})" for s in stages]
        wall = sum(getattr(case, f"{s}_wall") for s in stages)
        memory = f"{case.peak_private_bytes / MIB:.0f}"
        table.add_row(case.method, str(case.tasks), *shown, f"{case.cpu:.2f} ({wall:.2f})", memory)
    console().print(table)
