"""Statistics of experts on unlabelled calibration examples: inputs of linear weights, diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bounds.autodiff import batches, chunk_size, differentiable, memory_budget, parameter_bytes
from bounds.scores import probabilities
from bounds.types import Forward, Inputs, Params, refuse, take
from merging.closed_form.scale import check_at_least
from merging.draws import chosen_positions
from merging.task import BATCH, Task, check_tasks
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of a merge that looks at calibration examples."""

    examples: int = 64
    """k: unlabelled calibration examples of each task."""
    seed: int = 0
    """Seed of the choice of examples, which also depends on the task's name."""

    def __post_init__(self) -> None:
        check_at_least("examples", self.examples, 1)


def calibration(tv: TaskVectors, tasks: Sequence[Task], settings: CalibrationSettings) -> list[Inputs]:
    """Return k calibration examples of each task.

    Raises:
        InputError: tasks that are not those of the task vectors, in order, or fewer than k calibration examples.
    """
    check_tasks(tv.names, tasks)
    for task in tasks:
        if len(task.calibration) < settings.examples:
            refuse(
                f"calibration examples of task {task.name!r}",
                expected=f"at least examples = {settings.examples}",
                got=len(task.calibration),
                cure=f"set examples to {len(task.calibration)} or less",
            )
    chosen = chosen_positions(tv.names, [len(task.calibration) for task in tasks], settings.examples, settings.seed)
    return [take(task.calibration.inputs, index) for task, index in zip(tasks, chosen, strict=True)]


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class _Reached(Exception):
    """Ends a forward pass at the weight that was asked for."""


class _Inputs(TorchDispatchMode):
    """Adds up XᵀX and the rows of the inputs X of every product of matrices X W or X Wᵀ with a parameter W.

    With ``only``, of this weight's products alone, and the pass ends at the first of them.
    """

    def __init__(self, params: Params, only: str | None = None) -> None:
        super().__init__()
        self.names = {(value.data_ptr(), value.numel()): name for name, value in params.items() if value.ndim == 2}
        self.params = params
        self.only = only
        self.uses: dict[str, int] = {}
        self.products: dict[str, dict[int, Tensor]] = {}
        self.rows: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            self._note(*args[-2:])
        return func(*args, **(kwargs or {}))

    def _note(self, inputs: Tensor, right: Tensor) -> None:
        if right.ndim == 3 and right.stride(0) == 0:  # one matrix for the whole batch
            inputs, right = inputs.reshape(-1, inputs.shape[-1]), right[0]
        name = self.names.get((right.data_ptr(), right.numel()))
        if name is not None and self.only in (None, name):
            axis = 0 if right.stride() == self.params[name].stride() else 1
            sums = self.products.setdefault(name, {})
            sums[axis] = sums.get(axis, 0) + inputs.T @ inputs
            self.rows[name] = self.rows.get(name, 0) + len(inputs)
            self.uses[name] = self.uses.get(name, 0) + 1
            if self.only is not None:
                raise _Reached


@torch.no_grad()
def uses(forward: Forward, params: Params, inputs: Inputs, batch_size: int = BATCH) -> dict[str, int]:
    """Return, for each linear weight in the order of use, how often a pass multiplies by it: of batches the most."""
    most: dict[str, int] = {}
    with differentiable():
        for batch in batches(inputs, batch_size):
            with _Inputs(params) as recorder:
                forward(params, batch)
            most |= {name: max(count, most.get(name, 0)) for name, count in recorder.uses.items()}
    return most


@torch.no_grad()
def input_products(
    forward: Forward, params: Params, inputs: Inputs, only: str | None = None, batch_size: int = BATCH
) -> dict[str, tuple[int, Tensor]]:
    """Return, for each linear weight W in the order of use, the axis of W its inputs run over and mean_i x_i x_iᵀ.

    A linear weight is a matrix among the parameters that the network multiplies from the right: X W (axis 0) or X Wᵀ
    (axis 1), in ``F.linear``, ``nn.MultiheadAttention`` (whose fused path is switched off) or ``@``. The mean runs over
    all rows of X: examples, and tokens where there are any. Exact for the examples given. With ``only``, the name of a
    weight that a pass uses once (:func:`uses`), it is found alone, and no pass goes further than it.

    Raises:
        InputError: no linear weight is found, or one is used both as W and as Wᵀ.
    """
    recorder = _Inputs(params, only)
    with differentiable(), recorder:
        for batch in batches(inputs, batch_size):
            with suppress(_Reached):
                forward(params, batch)
    found = {}
    for name, sums in recorder.products.items():
        if len(sums) > 1:
            refuse(f"weight {name}", expected="use as W or as Wᵀ", got="both", cure="use another method")
        ((axis, total),) = sums.items()
        found[name] = (axis, total / recorder.rows[name])
    if not found:
        cure = "use another method, or a network that multiplies by the tensors it is given"
        refuse("network", expected="linear weights among its parameters", got="none", cure=cure)
    return found


def diagonal_fisher(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    generator: torch.Generator | None = None,
    counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information: mean over examples of Σ_c p_c (∂ log p_c / ∂θ)², the labels c from the model itself.

    No label is needed. One example and, within the memory budget, as many classes as fit at a time:
    ∇ log p_c = Jᵀ(e_c - p), so that one forward pass serves all classes. Exact: the expectation over labels is taken.
    With a ``generator`` estimated, without bias: one label c ~ p is drawn for each example, in order, and
    (∂ log p_c / ∂θ)² stands for the sum, with one backward pass in place of C.

    Of a network that scores every position, ``counted`` [N, L] says which count, and the mean is over these. Given the
    inputs, labels drawn at different positions are independent and their gradients have mean 0, so that the square of
    the sum of a sequence's gradients is in expectation the sum of their squares: one backward pass a sequence, without
    bias.

    Raises:
        InputError: ``counted`` without a ``generator``: L x V backward passes a sequence.
    """
    if counted is not None and generator is None:
        cure = "take labels=sampled"
        refuse("Fisher information of sequences", expected="drawn labels", got="their expectation", cure=cure)
    chunk = chunk_size(2 * parameter_bytes(params), memory_budget())
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    count = 0
    with differentiable():
        for place, example in enumerate(batches(inputs, 1)):
            kept = None if counted is None else counted[place]
            for gradients in _weighted_gradients(forward, params, example, chunk, generator, kept):
                for name, gradient in gradients.items():
                    total[name] += gradient.square().sum(dim=0)
            count += 1 if kept is None else int(kept.sum())
    return {name: value / count for name, value in total.items()}


def _weighted_gradients(
    forward: Forward,
    params: Params,
    example: Inputs,
    chunk: int,
    generator: torch.Generator | None,
    counted: Tensor | None,
) -> Iterator[dict[str, Tensor]]:
    """√p_c ∇ log p_c for chunks of classes, or ∇ log p_c of one drawn class: name -> [classes, ...].

    Where positions are counted, the sum of ∇ log p_c over them, of a class drawn at each.
    """
    scores, pull_back = torch.func.vjp(lambda p: forward(p, example), dict(params))[:2]
    p = probabilities(scores[0])
    if counted is not None:
        drawn = torch.multinomial(p.detach().double().cpu(), 1, generator=generator).to(p.device)
        slopes = (torch.zeros_like(p).scatter(-1, drawn, 1.0) - p) * counted[:, None]
        yield {name: gradient[None] for name, gradient in pull_back(slopes[None])[0].items()}
        return
    cotangents = torch.eye(len(p)).to(scores) - p
    if generator is None:
        cotangents = p.sqrt()[:, None] * cotangents
    else:  # on the CPU, so that the draw is the same on every device
        cotangents = cotangents[torch.multinomial(p.detach().double().cpu(), 1, generator=generator).to(p.device)]
    for part in cotangents.split(chunk):
        yield torch.func.vmap(lambda c: pull_back(c[None])[0])(part)
