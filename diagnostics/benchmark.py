"""Speed and memory of the toolkit, as ratios that do not depend on the machine.

``python -m diagnostics.benchmark bounds`` measures the products of docs/theory.md's kernel terms on randomly
initialised CLIP towers, against plain passes of the same network that are timed alternately with them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tyro.extras import SubcommandApp

from bounds import flatness, linearize, ntk
from bounds.autodiff import differentiable, functional, memory_budget
from bounds.types import Forward, Params, Sample

app = SubcommandApp()
CLASSES = 10
MIB = 2**20


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


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Sample the resident memory every 2 ms; the list holds its largest growth in bytes afterwards."""
    start, growth, stop = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            growth[0] = max(growth[0], resident_bytes() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield growth
    finally:
        stop.set()
        thread.join()


def cosine_head(tower: nn.Module, dimension: int) -> tuple[Forward, Params]:
    """Wrap a tower with a frozen random head of ``CLASSES`` unit vectors and a logit scale of 100."""
    head = 100 * nn.functional.normalize(torch.randn(CLASSES, dimension), dim=-1)

    def apply(module: nn.Module, images: Any) -> Tensor:
        return nn.functional.normalize(module(images), dim=-1) @ head.T

    return functional(tower, apply)


def vit_b32() -> tuple[Forward, Params]:
    """Build the visual tower of ViT-B/32 with random weights."""
    logging.disable(logging.WARNING)  # open_clip warns that no pretrained weights were asked for
    tower: Any = open_clip.create_model("ViT-B-32").visual
    logging.disable(logging.NOTSET)
    return cosine_head(tower, 512)


def small_vit() -> tuple[Forward, Params]:
    """Build a small ViT: width 192, 4 layers, patch 8, images of 32×32."""
    return cosine_head(
        VisionTransformer(image_size=32, patch_size=8, width=192, layers=4, heads=4, mlp_ratio=4.0, output_dim=64),
        64,
    )


def backward_passes(forward: Forward, params: Params, images: Tensor) -> None:
    """One forward pass per image, and one plain backward pass per image and class."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    for image in images:
        for score in (scores := forward(leaves, image[None])[0]):
            torch.autograd.grad(score, list(leaves.values()), retain_graph=score is not scores[-1])


def measure_trace(forward: Forward, params: Params, images: Tensor) -> list[Result]:
    """Exact kernel trace, one image at a time, alternating with plain backward passes of the same image."""
    budget = memory_budget()
    with peak_memory() as growth:
        ntk.trace(forward, params, images[:2])
    fast = slow = 0.0
    for image in images:
        start = time.perf_counter()
        ntk.trace(forward, params, image[None])
        middle = time.perf_counter()
        backward_passes(forward, params, image[None])
        fast, slow = fast + middle - start, slow + time.perf_counter() - middle
    n = len(images)
    return [
        Result(
            f"exact trace of {n} images / {n * CLASSES} plain backward passes",
            fast / slow,
            1.2,
            f"{fast:.1f} s / {slow:.1f} s",
        ),
        Result(
            "exact trace: peak memory / budget",
            growth[0] / budget,
            1.0,
            f"{growth[0] / MIB:.0f} MiB / {budget / MIB:.0f} MiB",
        ),
    ]


def measure_products(forward: Forward, params: Params, images: Tensor, repeats: int) -> list[Result]:
    """Quadratic form against a forward pass under the same attention kernels, and 4 directions against 4 calls."""
    directions = [{name: torch.randn_like(value) for name, value in params.items()} for _ in range(4)]

    def plain() -> None:
        with torch.no_grad(), differentiable():
            forward(params, images)

    def quadratic() -> None:
        ntk.quadratic_form(forward, params, images, directions[0])

    def several() -> None:
        linearize.jvp_scores(forward, params, images, directions)

    one, form, four = seconds(plain, quadratic, several, repeats=repeats)
    n = len(images)
    return [
        Result(f"quadratic form / forward pass, {n} images", form / one, 3.5, f"{form:.2f} s / {one:.2f} s"),
        Result("scores and 4 directional derivatives / forward pass", four / one, None, f"{four:.2f} s"),
    ]


def measure_gram(forward: Forward, params: Params, images: Tensor, budget: int) -> list[Result]:
    """Time and memory of a Gram matrix by Jacobian blocks."""
    ntk.gram(forward, params, images[:2], budget_bytes=budget)
    with peak_memory() as growth:
        start = time.perf_counter()
        ntk.gram(forward, params, images, budget_bytes=budget)
        elapsed = time.perf_counter() - start
    rows = len(images) * (CLASSES - 1) * sum(value.numel() * value.element_size() for value in params.values())
    return [
        Result(
            f"Gram matrix of {len(images)} images: peak memory / budget",
            growth[0] / budget,
            1.0,
            f"{growth[0] / MIB:.0f} MiB, {elapsed:.1f} s (all rows at once: {rows / MIB:.0f} MiB)",
        )
    ]


def measure_gradients(forward: Forward, params: Params, images: Tensor, repeats: int) -> list[Result]:
    """Per-example gradient norms vmapped over examples, against one example at a time."""
    sample = Sample(images, torch.arange(len(images)) % CLASSES)

    def run(vectorize: bool) -> None:
        flatness.gradient_second_moment(forward, params, sample, vectorize=vectorize)

    loop, together = seconds(lambda: run(False), lambda: run(True), repeats=repeats)
    what = f"gradient norms of {len(images)} images: vectorised / one by one"
    return [Result(what, together / loop, None, f"{together:.2f} s / {loop:.2f} s")]


def show(results: Sequence[Result]) -> None:
    """Print the results as a table."""
    table = Table("measured", "ratio", "goal", "", title=f"{torch.get_num_threads()} threads")
    for result in results:
        goal = "" if result.goal is None else f"<= {result.goal:g}"
        verdict = "" if result.goal is None else ("met" if result.ratio <= result.goal else "MISSED")
        table.add_row(result.what, f"{result.ratio:.2f}", f"{goal} {verdict}", result.detail)
    Console().print(table)


@app.command(name="bounds")
def bounds_command(images: int = 16, gram_images: int = 64, repeats: int = 3, threads: int = 0) -> None:
    """Kernel trace, quadratic form, Gram matrix and gradient norms on randomly initialised ViTs.

    Args:
        images: images of ViT-B/32 (the trace takes seconds for each on a CPU).
        gram_images: images of the small ViT's Gram matrix, within a budget of 2 GB.
        repeats: alternating repetitions of what is fast enough to repeat.
        threads: torch threads (0: torch's default).
    """
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    small, large = small_vit(), vit_b32()
    pixels = torch.randn(gram_images, 3, 32, 32)
    results = measure_gram(*small, pixels, 2 * 10**9)
    results += measure_gradients(*small, pixels, repeats)
    pictures = torch.randn(images, 3, 224, 224)
    results += measure_trace(*large, pictures)
    results += measure_products(*large, pictures, repeats)
    show(results)


def main() -> None:
    """Run the command line."""
    app.cli(prog="python -m diagnostics.benchmark", description="Speed and memory, as ratios.")


if __name__ == "__main__":
    main()
