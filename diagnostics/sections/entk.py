"""The empirical neural tangent kernel: trace per block, spectrum, effective rank, and its drift from θ_0 to θ_m."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bounds import ntk
from diagnostics.cache import digest
from diagnostics.workspace import Subject, Workspace


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
    count = len(workspace.names)
    key = digest(workspace.key("gram", "held_out", "seed"), subject.key)
    parts = workspace.pieces("entk", key, lambda i: _measure(workspace, subject, i), count, f"{subject.label}: eNTK")
    traces = [world.train_trace for world in workspace.experts.worlds]
    return KernelSection(
        tuple(workspace.blocks),
        tuple(tuple(trace.mean(dim=0).tolist()) for trace in traces),
        min(len(trace) for trace in traces),
        min(part["n"] for part in parts),
        tuple(
            KernelTask(tuple(p["eigenvalues"].tolist()), p["effective_rank"], p["rotation"], p["relative_change"])
            for p in parts
        ),
    )


def _measure(workspace: Workspace, subject: Subject, index: int) -> Mapping[str, Any]:
    task, base = workspace.suite.tasks[index], workspace.vectors.base
    sample = workspace.held_out(task).take(slice(workspace.settings.gram))
    spectrum = ntk.spectrum(task.forward, base, sample.inputs, len(sample) * (len(task.class_names) - 1))
    drift = ntk.drift(task.forward, base, workspace.weights(subject), sample.inputs)
    return {
        "n": len(sample),
        "eigenvalues": spectrum.eigenvalues,
        "effective_rank": spectrum.effective_rank,
        "rotation": drift.rotation.value,
        "relative_change": drift.relative_change.value,
    }
