"""Suite ``toy``: a tiny two-layer network world whose best merge is known, made in a second.

Task t classifies vectors that are non-zero only on its own coordinates. Experts fine-tune the first layer alone, so
τ_t touches only the columns of task t's coordinates: with every coefficient at 1 the merged model equals each expert
on its task, whatever the activation. ``overlap`` moves the tasks onto shared coordinates, where they interfere;
``activation="linear"`` makes f = f^lin exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.types import Forward, Inputs, Params, Sample
from merging.suites.base import Suite
from merging.task import Task
from merging.task_vectors import Storage, TaskVectors

CLASSES = (3, 2, 3)
"""Number of classes of each task."""
WIDTH, COORDINATES = 6, 4
_SPLITS = {"train": 60, "calibration": 24, "validation": 30, "test": 48}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "linear": lambda x: x}


def suite(storage: Storage) -> Suite:
    """Return the suite as ``merging.suites.load`` gives it."""
    return build(storage=storage)


def build(
    overlap: float = 0.0,
    activation: Literal["tanh", "linear"] = "tanh",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    storage: Storage | None = None,
) -> Suite:
    """Make the world: three tasks, θ_0, and three experts trained by 60 steps of full-batch gradient descent.

    Args:
        overlap: share in [0, 1] of each task's signal that lies on coordinates all tasks use.
        activation: of the hidden layer.
        seed: of θ_0, heads and data.
        dtype: of weights and inputs.
        storage: precision and place of the task vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    features = COORDINATES * (len(CLASSES) + 1)
    base = {
        "first.weight": 0.5 * torch.randn(WIDTH, features, generator=generator, dtype=dtype),
        "second.weight": torch.randn(WIDTH, WIDTH, generator=generator, dtype=dtype) / WIDTH**0.5,
    }
    tasks, experts = [], {}
    for index, classes in enumerate(CLASSES):
        head = torch.randn(classes, WIDTH, generator=generator, dtype=dtype)
        forward = _forward(head, _ACTIVATIONS[activation])
        splits = _data(index, classes, overlap, generator, dtype)
        name = f"task{index}"
        tasks.append(Task(name, forward, [f"class {c}" for c in range(classes)], **splits))
        experts[name] = _fine_tune(forward, base, splits["train"])
    sources = {"toy": f"seed {seed}"}
    return Suite("toy", TaskVectors.from_experts(base, experts, storage, sources), tasks, sources=sources)


def _forward(head: Tensor, activation: Callable[[Tensor], Tensor]) -> Forward:
    def forward(params: Params, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        hidden = activation(inputs @ params["first.weight"].T)
        return hidden @ params["second.weight"].T @ head.T.to(hidden.device)

    return forward


def _data(
    index: int, classes: int, overlap: float, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Sample]:
    centres = 1.5 * torch.randn(classes, COORDINATES, generator=generator, dtype=dtype)
    own = slice(COORDINATES * index, COORDINATES * (index + 1))
    shared = slice(COORDINATES * len(CLASSES), None)
    splits = {}
    for split, size in _SPLITS.items():
        labels = torch.arange(size) % classes
        signal = centres[labels] + 0.7 * torch.randn(size, COORDINATES, generator=generator, dtype=dtype)
        inputs = torch.zeros(size, COORDINATES * (len(CLASSES) + 1), dtype=dtype)
        inputs[:, own] = (1 - overlap) * signal
        inputs[:, shared] = overlap * signal
        splits[split] = Sample(inputs, None if split == "calibration" else labels)
    return splits


def _fine_tune(forward: Forward, base: Params, train: Sample) -> dict[str, Tensor]:
    assert train.labels is not None
    weight = base["first.weight"].clone().requires_grad_()
    for _ in range(60):
        loss = F.cross_entropy(forward({**base, "first.weight": weight}, train.inputs), train.labels)
        (gradient,) = torch.autograd.grad(loss, [weight])
        weight = (weight - 0.3 * gradient).detach().requires_grad_()
    return {**base, "first.weight": weight.detach()}
