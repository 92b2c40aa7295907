"""The empirical neural tangent kernel: trace per block, spectrum, effective rank, and its drift from θ_0 to θ_m."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bounds import ntk
from bounds.types import Params
from diagnostics.subject import Subject
from diagnostics.work.cache import digest
from diagnostics.workspace import Pieces, Workspace


@dataclass(frozen=True)
class KernelTask:
    """One task's centred kernel at θ_0: eigenvalues of its Gram matrix (descending), effective rank, drift to θ_m."""

    eigenvalues: tuple[float, ...]
    effective_rank: float
    rotation: float
    relative_change: float


@dataclass(frozen=True)
class KernelSection:
    """``trace`` [task][block]: mean tr K_b over ``trace_examples`` of S_t; Gram matrices of ``gram_examples`` each."""

    blocks: tuple[str, ...]
    trace: tuple[tuple[float, ...], ...]
    trace_examples: int
    gram_examples: int
    tasks: tuple[KernelTask, ...]


def compute(workspace: Workspace, subject: Subject) -> KernelSection:
    """Read the traces off the kernel blocks of the bound; form the Gram matrices at θ_0 and θ_m."""
    weights = workspace.weights(subject)
    before, after = workspace.gather(
        [grams(workspace, "θ_0", workspace.vectors.base), grams(workspace, subject.key, weights)],
        f"{subject.label}: eNTK",
    )
    traces = [world.train_trace for world in workspace.experts.worlds]
    return KernelSection(
        tuple(workspace.blocks),
        tuple(tuple(trace.mean(dim=0).tolist()) for trace in traces),
        min(len(trace) for trace in traces),
        min(len(part["gram"]) for part in before),
        tuple(_task(b["gram"], a["gram"]) for b, a in zip(before, after, strict=True)),
    )


def grams(workspace: Workspace, key: str, theta: Params) -> Pieces:
    """Return the centred kernel's Gram matrices [N, C, N, C] at θ, per task; ``key`` must identify θ."""

    def one(index: int) -> Mapping[str, Any]:
        task = workspace.suite.tasks[index]
        few = workspace.held_out(task).take(slice(workspace.settings.gram))
        return {"gram": ntk.gram(task.forward, theta, few.inputs).cpu()}

    return Pieces("gram", digest(workspace.key("gram", "held_out", "seed"), key), one, len(workspace.names))


def _task(before: Tensor, after: Tensor) -> KernelTask:
    examples, classes = before.shape[:2]
    spectrum, drift = ntk.gram_spectrum(before, examples * (classes - 1)), ntk.gram_drift(before, after)
    values = tuple(spectrum.eigenvalues.tolist())
    return KernelTask(values, spectrum.effective_rank, drift.rotation.value, drift.relative_change.value)
