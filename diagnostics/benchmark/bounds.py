"""Speed and memory of the kernel terms, against plain passes of the same network that are timed alternately."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from bounds import flatness, linearize, ntk
from bounds.autodiff import differentiable, memory_budget
from bounds.types import Forward, Params, Sample
from diagnostics.benchmark.measuring import (
    CLASSES,
    MIB,
    Result,
    cosine_head,
    peak_memory,
    seconds,
    show,
    small_vit,
    tower,
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


def measure(images: int = 16, gram_images: int = 64, repeats: int = 3, threads: int = 0) -> None:
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
    small, large = small_vit(), cosine_head(tower("ViT-B-32"), 512)
    pixels = torch.randn(gram_images, 3, 32, 32)
    results = measure_gram(*small, pixels, 2 * 10**9)
    results += measure_gradients(*small, pixels, repeats)
    pictures = torch.randn(images, 3, 224, 224)
    results += measure_trace(*large, pictures)
    results += measure_products(*large, pictures, repeats)
    show(results)
