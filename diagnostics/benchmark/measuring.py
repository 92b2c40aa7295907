"""What the benchmarks share: alternating timings, memory of this process, towers with random weights, the table."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from rich.table import Table
from torch import Tensor, nn

from bounds.autodiff import functional
from bounds.types import Forward, Params, refuse
from merging.commands import console, write_json
from merging.files import write

CLASSES = 10
MIB = 2**20
SIZE = 1e-3
"""Standard deviation of the generated task vectors' entries: that of θ_0's is about 2e-2."""


@dataclass(frozen=True)
class Result:
    """One measured ratio; ``goal`` is its largest acceptable value, if it has one."""

    what: str
    ratio: float
    goal: float | None
    detail: str


def seconds(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Smallest time of each function over ``repeats`` alternating calls, after one warm-up call each."""
    best = [float("inf")] * len(functions)
    for repeat in range(repeats + 1):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if repeat:
                best[index] = min(best[index], time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Took:
    """Seconds of the clock and of all processors of this process."""

    wall: float
    processor: float


def took(function: Callable[[], object]) -> Took:
    """Time one call. Processor seconds change less when others use the cores; threads that wait may count."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def faster(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices in ``dtype`` faster than in float32 (measured, at a ViT's width)."""
    times: list[float] = []
    for precision in (dtype, torch.float32):
        left, right = torch.randn(128, 768).to(precision), torch.randn(768, 768).to(precision)
        times += seconds(partial(torch.mm, left, right), repeats=5)
    return times[0] < times[1]


def draw(stacked: Mapping[str, Tensor]) -> None:
    """Fill stacked task vectors [T, ...]: normal numbers for the first; the others are the first's, moved along."""
    generator = torch.Generator().manual_seed(0)
    for tensor in stacked.values():
        numbers = SIZE * torch.randn(tensor[0].numel(), generator=generator)
        for task, delta in enumerate(tensor):
            delta.copy_(numbers.roll(task).view(delta.shape))


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes() -> int:
    """Resident memory that belongs to no file (Linux, RssAnon): mapped task vectors are not in it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_memory(measure: Callable[[], int] = resident_bytes) -> Iterator[list[int]]:
    """Sample the memory every 2 ms; the list holds its largest growth in bytes afterwards."""
    start, growth, stop = measure(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            growth[0] = max(growth[0], measure() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield growth
    finally:
        stop.set()
        thread.join()


def cosine_head(module: nn.Module, dimension: int) -> tuple[Forward, Params]:
    """Wrap a tower with a frozen random head of ``CLASSES`` unit vectors and a logit scale of 100."""
    head = 100 * nn.functional.normalize(torch.randn(CLASSES, dimension), dim=-1)

    def apply(module: nn.Module, images: Any) -> Tensor:
        return nn.functional.normalize(module(images), dim=-1) @ head.T

    return functional(module, apply)


def tower(model: str) -> Any:
    """Build the visual tower of an open_clip model with random weights."""
    logging.disable(logging.WARNING)  # open_clip warns that no pretrained weights were asked for
    try:
        return open_clip.create_model(model).visual
    finally:
        logging.disable(logging.NOTSET)


def tower_shapes(model: str) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of a model's visual tower; no memory is taken for it."""
    if open_clip.get_model_config(model) is None:
        refuse("model", expected="the name of an open_clip model", got=repr(model), cure="try ViT-B-32")
    logging.disable(logging.WARNING)  # open_clip warns that no pretrained weights were asked for
    try:
        with torch.device("meta"):
            visual: Any = open_clip.create_model(model, device="meta").visual
    finally:
        logging.disable(logging.NOTSET)
    return {name: value.shape for name, value in visual.named_parameters()}


def small_vit() -> tuple[Forward, Params]:
    """Build a small ViT: width 192, 4 layers, patch 8, images of 32×32."""
    return cosine_head(
        VisionTransformer(image_size=32, patch_size=8, width=192, layers=4, heads=4, mlp_ratio=4.0, output_dim=64),
        64,
    )


def show(results: Sequence[Result]) -> None:
    """Print the results as a table."""
    table = Table("measured", "ratio", "goal", "", title=f"{torch.get_num_threads()} threads")
    for result in results:
        goal = "" if result.goal is None else f"<= {result.goal:g}"
        verdict = "" if result.goal is None else ("met" if result.ratio <= result.goal else "MISSED")
        table.add_row(result.what, f"{result.ratio:.2f}", f"{goal} {verdict}", result.detail)
    console().print(table)


@contextmanager
def own_folder(folder: Path | None) -> Iterator[Path]:
    """Make a folder below ``folder`` (None: the system's) that is removed with all that is in it.

    Raises:
        InputError: a folder that cannot be written.
    """
    try:
        place = tempfile.TemporaryDirectory(prefix="mergebound.", dir=folder)
    except OSError as error:
        refuse(f"folder {folder}", expected="a folder that can be written", got=error.strerror, cure="choose another")
    with place as name:
        yield Path(name)


def told_as_json(cases: Sequence[Any], json_out: str) -> bool:
    """Write cases (data classes) as JSON to the file ``json_out``, if one is named; whether "-" replaced the table.

    Raises:
        InputError: a file that cannot be written.
    """
    text = json.dumps([asdict(case) for case in cases], indent=1) + "\n"
    if json_out == "-":
        write_json(text)
    elif json_out:
        write(json_out, lambda file: file.write(text.encode()), "--json-out")
    return json_out == "-"
