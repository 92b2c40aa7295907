"""The empirical neural tangent kernel: trace per block; where asked for, spectrum, effective rank, and drift to θ_m."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bounds import ntk
from bounds.types import Estimate, Params
from diagnostics.figures.svg import FAINT
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class KernelTask:
    """One task's centred kernel at θ_0: eigenvalues of its Gram matrix (descending), effective rank, drift to θ_m.

    ``rotation`` is S(K_0, K_m), ``change`` ‖K_m - K_0‖/‖K_0‖. Errors: jackknife over the examples of the matrix. The
    effective rank is that of so many examples: it grows with their number.
    """

    eigenvalues: tuple[float, ...]
    effective_rank: Estimate
    rotation: Estimate
    change: Estimate


@dataclass(frozen=True, kw_only=True)
class KernelSection:
    """``trace`` [task][block]: mean tr K_b over ``trace_examples`` of S_t, and ``total`` over blocks, per task.

    ``tasks`` rest on Gram matrices of ``gram_examples`` held-out examples each; they are empty where ``--gram`` did not
    ask for them: on few examples they say little, on many they take minutes.
    """

    blocks: tuple[str, ...]
    trace: tuple[tuple[float, ...], ...]
    total: tuple[Estimate, ...]
    trace_examples: int
    gram_examples: int
    tasks: tuple[KernelTask, ...]


def compute(workspace: Workspace, subject: Subject) -> KernelSection:
    """Read the traces off the kernel blocks of the bound; form the Gram matrices at θ_0 and θ_m where asked for."""
    before: Sequence[Mapping[str, Any]] = ()
    after: Sequence[Mapping[str, Any]] = ()
    if workspace.settings.gram:
        wanted = [
            grams(workspace, "θ_0", workspace.vectors.base),
            grams(workspace, subject.key, workspace.weights(subject)),
        ]
        before, after = workspace.gather(wanted, f"{subject.label}: eNTK")
    traces = workspace.traces()
    return KernelSection(
        blocks=tuple(workspace.blocks),
        trace=tuple(tuple(trace.mean(dim=0).tolist()) for trace in traces),
        total=tuple(Estimate.of_mean(trace.sum(dim=1)) for trace in traces),
        trace_examples=min(len(trace) for trace in traces),
        gram_examples=min((len(part["gram"]) for part in before), default=0),
        tasks=tuple(kernel_task(b["gram"], a["gram"]) for b, a in zip(before, after, strict=True)),
    )


def grams(workspace: Workspace, key: str, theta: Params) -> Pieces:
    """Return the centred kernel's Gram matrices [N, C, N, C] at θ, per task; ``key`` must identify θ."""

    def one(index: int) -> Mapping[str, Any]:
        task = workspace.suite.tasks[index]
        few = workspace.held_out(task).take(slice(workspace.settings.gram))
        return {"gram": ntk.gram(task.forward, theta, few.inputs).cpu()}

    return Pieces("gram", key, one, len(workspace.names))


def kernel_task(before: Tensor, after: Tensor) -> KernelTask:
    """Describe Gram matrices [N, C, N, C] at θ_0 and θ_m, N >= 2, with jackknife errors over the examples."""
    examples, classes = before.shape[:2]
    whole, values = _measures(before, after), ntk.gram_spectrum(before, examples * (classes - 1)).eigenvalues
    without = []
    for i in range(examples):
        keep = [k for k in range(examples) if k != i]
        without.append(_measures(before[keep][:, :, keep], after[keep][:, :, keep]))
    errors = torch.tensor(without, dtype=torch.float64).std(dim=0, correction=0) * (examples - 1) ** 0.5
    found = [Estimate(v, e, examples, "estimated") for v, e in zip(whole, errors.tolist(), strict=True)]
    return KernelTask(tuple(values.tolist()), *found)


def _measures(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """Effective rank of the first, rotation and relative change from it to the second."""
    drift = ntk.gram_drift(before, after)
    return ntk.gram_spectrum(before, 1).effective_rank, drift.rotation.value, drift.relative_change.value


def traces(view: View, part: KernelSection) -> Figure:
    """Trace of the kernel at θ_0 per task and block: the same for all merges."""
    from diagnostics.figures import style

    figure = style.new_figure(2.6)
    axes = figure.subplots()
    _draw_traces(axes, view, part)
    style.task_axis(axes, view.tasks, shown=True)
    return figure


def figure(view: View, part: KernelSection) -> Figure:
    """Spectra of the Gram matrices at θ_0; drift from θ_0 to θ_m per task."""
    from diagnostics.figures import style

    figure = style.new_figure(4.6)
    top, bottom = figure.subplots(2, 1, gridspec_kw={"height_ratios": [1.1, 1]})
    _draw_spectra(top, view, part)
    _draw_drifts(bottom, view, part)
    style.task_axis(bottom, view.tasks, shown=True)
    return figure


def _draw_spectra(axes: Any, view: View, part: KernelSection) -> None:
    from diagnostics.figures import style

    markers, dashes = "os^DvP*X", ["-", "--", "-.", ":"]
    colours = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION)
    for index, (name, task) in enumerate(zip(view.tasks, part.tasks, strict=True)):
        values = [v for v in task.eigenvalues if v > 0]
        axes.plot(
            range(1, len(values) + 1), values, color=colours[index % 4], linewidth=1,
            linestyle=dashes[(index // 4) % 4], marker=markers[index % 8], markersize=3,
            label=style.named(name),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("index of the eigenvalue")
    axes.set_ylabel(f"eigenvalue of the Gram\nmatrix, n = {part.gram_examples}")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_traces(axes: Any, view: View, part: KernelSection) -> None:
    import numpy as np

    from diagnostics.figures import style

    trace = np.array(part.trace).T
    left = np.zeros(len(view.tasks))
    colours = ["#00204c", "#39486b", "#6c6e72", "#9d9677", "#d2c060", "#ffe945"]
    for block, values in enumerate(trace):
        colour = colours[round(block * (len(colours) - 1) / max(1, len(trace) - 1))]
        label = style.short(part.blocks[block])
        axes.bar(range(len(left)), values, bottom=left, color=colour, edgecolor=FAINT, linewidth=0.6, label=label)
        left = left + values
    axes.set_ylabel(f"mean trace at θ_0\n(scores²/weight²), n = {part.trace_examples}")
    axes.legend(fontsize=7, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_drifts(axes: Any, view: View, part: KernelSection) -> None:
    import numpy as np

    from diagnostics.figures import style

    at = np.arange(len(view.tasks))
    for shift, name, colour, marker, label in (
        (-0.08, "rotation", style.VERMILION, "o", "rotation S"),
        (0.08, "change", style.BLUE, "s", "‖K_m − K_0‖/‖K_0‖"),
    ):
        found: list[Estimate] = [getattr(task, name) for task in part.tasks]
        axes.errorbar(
            at + shift, [e.value for e in found], yerr=[2 * e.stderr for e in found], color=colour, marker=marker,
            linestyle="", capsize=2, label=label,
        )  # fmt: skip
    axes.set_ylim(0, None)
    axes.set_ylabel(f"drift θ_0 → θ_m\n(± 2 s.e.), n = {part.gram_examples}")
    axes.legend(fontsize=8, frameon=False)


SECTION = Section(
    kind=KernelSection,
    compute=compute,
    title="Neural tangent kernel",
    link="kernel",
    figures={"traces": Drawn(traces, once=True), "kernel": Drawn(figure, there=lambda part: bool(part.tasks))},
    late=True,
    scored={"example"},
    rests_on="the tangent kernel of an example has (L·V)² numbers at L positions and V classes",
)
