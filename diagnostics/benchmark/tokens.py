"""Cost of learning on scores at every position: a pass with a teacher's events beside the network's own pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bounds.autodiff import functional, without_jit_warning
from bounds.coarse import likeliest
from bounds.scores import mean_cross_entropy
from bounds.types import meant, refuse
from diagnostics.benchmark.measuring import Took, told_as_json, took
from merging.commands import console, track
from merging.files import check_destination
from merging.learned.objectives import OBJECTIVES
from merging.learned.tokens import token_loss
from merging.measured import Positions
from merging.models.libraries import library


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A pass of one batch with a teacher's k events and an objective, over the network's own forward and backward.

    The network's own pass ends in the cross-entropy of the next tokens, as its training does. ``ratio`` and
    ``processor_ratio`` are medians over pairs of one of each; ``teacher_bytes`` is what is kept of a teacher on the
    batch, ``scores_bytes`` what all its scores would take in float32.
    """

    k: int | None
    objective: str
    own_seconds: float
    ratio: float
    processor_ratio: float
    teacher_bytes: int
    scores_bytes: int
    threads: int


def measure(
    vocabulary: int = 50257,
    width: int = 768,
    layers: int = 12,
    length: int = 64,
    batch: int = 1,
    top_k: tuple[int, ...] = (64,),
    objectives: tuple[str, ...] = ("kl",),
    repeats: int = 3,
    threads: int = 0,
    json_out: str = "",
) -> None:
    """Measure what the loss on a teacher's likeliest classes costs beside a GPT-2's own pass with random weights.

    Args:
        vocabulary: V.
        width: of the network; with 768 and 12 layers it has the shapes of GPT-2.
        layers: of the network.
        length: tokens of an example.
        batch: examples of a pass.
        top_k: classes of the teacher that are told apart.
        objectives: rows of the table of objectives.
        repeats: pairs of passes after one to warm up.
        threads: torch threads (0: torch's default).
        json_out: also write the figures as JSON to this file (- for standard output, without the table).
    """
    for name in objectives:
        if name not in OBJECTIVES:
            refuse("objective", expected=" or ".join(OBJECTIVES), got=repr(name), cure=meant(name, OBJECTIVES))
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    forward, theta = functional(_gpt2(vocabulary, width, layers, length), _logits, per_position=True)
    leaf = {name: value.clone().requires_grad_() for name, value in theta.items()}
    ids, following = torch.randint(vocabulary, (2, batch, length))

    def passed(loss: Callable[[Tensor], Tensor]) -> None:
        for value in leaf.values():
            value.grad = None
        loss(forward(leaf, ids)).backward()

    def own() -> None:
        passed(lambda scores: mean_cross_entropy(scores.flatten(0, 1), following.flatten()))

    costs = []
    for k in track(top_k, "numbers of classes"):
        with torch.no_grad():
            log_p, classes = likeliest(forward(theta, ids.flip(1)), k)
        kept = Positions(torch.ones(batch, length, dtype=torch.bool), classes)
        for name in objectives:
            loss = partial(token_loss, teacher=log_p, positions=kept, objective=OBJECTIVES[name], temperature=1.0)
            pairs = _pairs(own, partial(passed, loss), repeats)
            numbers = log_p.nbytes + (0 if classes is None else classes.nbytes), 4 * batch * length * vocabulary
            costs.append(_cost(k, name, pairs, *numbers))
    if not told_as_json(costs, json_out):
        _show(costs, f"GPT-2 of {layers} layers of {width}, V = {vocabulary}, {batch} x {length} tokens")


def _gpt2(vocabulary: int, width: int, layers: int, length: int) -> Any:
    library("transformers")
    with without_jit_warning():
        from transformers import GPT2Config, GPT2LMHeadModel  # an extra

        config = GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=max(1, width // 64), n_positions=length
        )
        return GPT2LMHeadModel(config).eval()


def _logits(module: Any, ids: Any) -> Tensor:
    return module(input_ids=ids, use_cache=False).logits


def _pairs(own: Callable[[], object], events: Callable[[], object], repeats: int) -> list[tuple[Took, Took]]:
    """Time both in turn after one of each, the network's own pass before and after: drifts weigh on both."""
    own()
    events()
    found = []
    for _ in range(repeats):
        before, taken, after = took(own), took(events), took(own)
        plain = Took((before.wall + after.wall) / 2, (before.processor + after.processor) / 2)
        found.append((plain, taken))
    return found


def _cost(
    k: int | None, objective: str, pairs: Sequence[tuple[Took, Took]], teacher_bytes: int, scores_bytes: int
) -> Cost:
    return Cost(
        k=k,
        objective=objective,
        own_seconds=median(plain.processor for plain, _ in pairs),
        ratio=median(events.wall / plain.wall for plain, events in pairs),
        processor_ratio=median(events.processor / plain.processor for plain, events in pairs),
        teacher_bytes=teacher_bytes,
        scores_bytes=scores_bytes,
        threads=torch.get_num_threads(),
    )


def _show(costs: Sequence[Cost], title: str) -> None:
    table = Table("classes", "objective", "own pass (s)", "ratio", "of processor time", title=title)
    for name in ("teacher (MB)", "all scores (MB)"):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.k),
            cost.objective,
            f"{cost.own_seconds:.2f}",
            f"{cost.ratio:.3f}",
            f"{cost.processor_ratio:.3f}",
            f"{cost.teacher_bytes / 1e6:.2f}",
            f"{cost.scores_bytes / 1e6:.1f}",
        )
    console().print(table)
