"""The empirical neural tangent kernel: trace per block, spectrum, effective rank, and its drift from θ_0 to θ_m."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bounds import ntk
from bounds.types import Params
from diagnostics.figures.svg import FAINT
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class KernelTask:
    """One task's centred kernel at θ_0: eigenvalues of its Gram matrix (descending), effective rank, drift to θ_m."""

    eigenvalues: tuple[float, ...]
    effective_rank: float
    rotation: float
    relative_change: float


@dataclass(frozen=True, kw_only=True)
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
    traces = workspace.traces()
    return KernelSection(
        blocks=tuple(workspace.blocks),
        trace=tuple(tuple(trace.mean(dim=0).tolist()) for trace in traces),
        trace_examples=min(len(trace) for trace in traces),
        gram_examples=min(len(part["gram"]) for part in before),
        tasks=tuple(_task(b["gram"], a["gram"]) for b, a in zip(before, after, strict=True)),
    )


def grams(workspace: Workspace, key: str, theta: Params) -> Pieces:
    """Return the centred kernel's Gram matrices [N, C, N, C] at θ, per task; ``key`` must identify θ."""

    def one(index: int) -> Mapping[str, Any]:
        task = workspace.suite.tasks[index]
        few = workspace.held_out(task).take(slice(workspace.settings.gram))
        return {"gram": ntk.gram(task.forward, theta, few.inputs).cpu()}

    return Pieces("gram", key, one, len(workspace.names))


def _task(before: Tensor, after: Tensor) -> KernelTask:
    examples, classes = before.shape[:2]
    spectrum, drift = ntk.gram_spectrum(before, examples * (classes - 1)), ntk.gram_drift(before, after)
    values = tuple(spectrum.eigenvalues.tolist())
    return KernelTask(values, spectrum.effective_rank, drift.rotation.value, drift.relative_change.value)


def figure(view: View, part: KernelSection) -> Figure:
    """Trace of the kernel per task and block, spectra of its Gram matrices, drift from θ_0 to θ_m per task."""
    from diagnostics.figures import style

    figure = style.new_figure(6.4)
    top, middle, bottom = figure.subplots(3, 1, gridspec_kw={"height_ratios": [1.1, 1.1, 1]})
    _draw_traces(top, view, part)
    markers, dashes = "os^DvP*X", ["-", "--", "-.", ":"]
    colours = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION)
    for index, (name, task) in enumerate(zip(view.tasks, part.tasks, strict=True)):
        values = [v for v in task.eigenvalues if v > 0]
        middle.plot(
            range(1, len(values) + 1), values, color=colours[index % 4], linewidth=1,
            linestyle=dashes[(index // 4) % 4], marker=markers[index % 8], markersize=3,
            label=style.named(name),
        )  # fmt: skip
    middle.set_yscale("log")
    middle.set_xlabel("index of the eigenvalue")
    middle.set_ylabel(f"eigenvalue of the Gram\nmatrix, n = {part.gram_examples}")
    middle.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _draw_drifts(bottom, view, part)
    style.task_axis(top, view.tasks, shown=False)
    style.task_axis(bottom, view.tasks, shown=True)
    return figure


def _draw_traces(axes: Any, view: View, part: KernelSection) -> None:
    import numpy as np

    from diagnostics.figures import style

    trace = np.array(part.trace).T
    left = np.zeros(len(view.tasks))
    colours = ["#00204c", "#39486b", "#6c6e72", "#9d9677", "#d2c060", "#ffe945"]
    for block, values in enumerate(trace):
        colour = colours[round(block * (len(colours) - 1) / max(1, len(trace) - 1))]
        label = style.short(part.blocks[block])
        axes.bar(range(len(left)), values, bottom=left, color=colour, edgecolor=FAINT, linewidth=0.4, label=label)
        left = left + values
    axes.set_ylabel(f"mean tr K_b at θ_0\n(scores²/weight²), n = {part.trace_examples}")
    axes.legend(fontsize=7, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_drifts(axes: Any, view: View, part: KernelSection) -> None:
    import numpy as np

    from diagnostics.figures import style

    at = np.arange(len(view.tasks))
    axes.plot(at - 0.08, [t.rotation for t in part.tasks], "o", color=style.VERMILION, label="rotation S")
    changes = [t.relative_change for t in part.tasks]
    axes.plot(at + 0.08, changes, "s", color=style.BLUE, label="‖K_m − K_0‖/‖K_0‖")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"drift θ_0 → θ_m\n(ratio), n = {part.gram_examples}")
    axes.legend(fontsize=8, frameon=False)


SECTION = Section(
    kind=KernelSection,
    compute=compute,
    title="Neural tangent kernel",
    link="kernel",
    figures={"kernel": Drawn(figure)},
    late=True,
)
