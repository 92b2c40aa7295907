"""Rows of the table of methods whose coefficients are learned.

``merge("samerging", objective=..., perturbation=..., ...)`` gives every combination; the rows beside it are published
methods by name, with their own defaults. Laws (tests/laws.py) they break by definition are named with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from merging.execution import Execution
from merging.learned.checkpoint import learn
from merging.learned.layerwise import prodistill
from merging.learned.loop import learned
from merging.learned.problem import Problem, prepare
from merging.learned.rank_masks import adarank
from merging.learned.settings import LearnedSettings
from merging.learned.settings_rows import (
    AdaMergingSettings,
    EntrySettings,
    FrankWolfeSettings,
    ProDistillSettings,
    RankSettings,
    SingleLayerSettings,
    TaskWiseSettings,
    TrimmedSettings,
)
from merging.learned.single_layer import symerge
from merging.learned.trimming import trimmed
from merging.rows import CALIBRATION, Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged


def _learned(
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: LearnedSettings,
    progress: Progress,
    execution: Execution,
) -> Merge:
    return _solve(prepare(task_vectors, tasks, settings, execution), progress)


def _solve(problem: Problem, progress: Progress) -> Merge:
    state = learn(problem, progress, "learning coefficients")
    coefficients, blocks = learned(state), problem.blocks
    return Merge(
        params=merged(problem.task_vectors, coefficients, blocks),
        coefficients=coefficients,
        blocks=blocks,
        history=state.history,
    )


def _trimmed(
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: TrimmedSettings,
    progress: Progress,
    execution: Execution,
) -> Merge:
    """AdaMerging++; its λ belongs to the trimmed task vectors, so the merge carries none for the given ones.

    Objectives that consult an expert consult the expert as it is.
    """
    problem = prepare(task_vectors, tasks, settings, execution)
    result = _solve(replace(problem, task_vectors=trimmed(task_vectors, settings.density)), progress)
    return replace(result, coefficients=None, blocks=None)


ENTROPY = "an expert is not a stationary point of the entropy of its own scores"
HARD = "an expert is not a stationary point of the cross-entropy to its own most likely classes"
NO_LAYERS = "the world of the laws is a function of two tensors without modules, which this row needs"
LAYERS: Mapping[str, str] = dict.fromkeys(
    (
        "one task",
        "equal experts",
        "zero task vectors",
        "order",
        "deterministic",
        "saved whole",
        "half precision",
        "sees only its needs",
    ),
    NO_LAYERS,
)
"""Laws that ProDistill breaks; in a world with layers they hold (its own tests)."""

ROWS: Mapping[str, Method] = {
    "samerging": Method(
        build=_learned,
        settings=LearnedSettings,
        paper="SAMerging, arXiv 2512.21288",
        needs=CALIBRATION,
        cost="steps x passes of its perturbation (SAM 2) x T batches",
        executes=True,
    ),
    "adamerging": Method(
        build=_learned,
        settings=AdaMergingSettings,
        paper="AdaMerging, layer-wise: arXiv 2310.02575",
        needs=CALIBRATION,
        cost="steps x T batches",
        breaks={"one task": ENTROPY, "equal experts": ENTROPY},
        executes=True,
    ),
    "adamerging_task": Method(
        build=_learned,
        settings=TaskWiseSettings,
        paper="AdaMerging, task-wise: arXiv 2310.02575",
        needs=CALIBRATION,
        cost="steps x T batches",
        breaks={"one task": ENTROPY, "equal experts": ENTROPY},
        executes=True,
    ),
    "adamerging++": Method(
        build=_trimmed,
        settings=TrimmedSettings,
        paper="AdaMerging++, layer-wise: arXiv 2310.02575; TIES: arXiv 2306.01708",
        needs=CALIBRATION,
        cost="sorting T task vectors, then steps x T batches",
        breaks={"one task": ENTROPY, "equal experts": ENTROPY},
        executes=True,
    ),
    "prodistill": Method(
        build=prodistill,
        settings=ProDistillSettings,
        paper="ProDistill with one coefficient per tensor: arXiv 2502.12706",
        needs=CALIBRATION,
        cost="layers x steps x T batches through the layers up to it (about half a network)",
        network="a network of torch modules with layers",
        breaks=LAYERS,
    ),
    "prodistill_entry": Method(
        build=prodistill,
        settings=EntrySettings,
        paper="ProDistill, one coefficient per entry: Xu et al. 2025, arXiv 2502.12706",
        needs=CALIBRATION,
        cost="layers x steps x T batches through the layers up to it; of one layer, 3 numbers per entry and task",
        network="a network of torch modules with layers",
        breaks=LAYERS,
    ),
    "symerge": Method(
        build=symerge,
        settings=SingleLayerSettings,
        paper="SyMerge-like (one shared layer instead of one head per task): arXiv 2412.19098",
        needs=CALIBRATION,
        cost="steps x T batches",
        breaks={"one task": HARD, "equal experts": HARD, "zero task vectors": HARD},
        executes=True,
    ),
    "adarank": Method(
        build=adarank,
        settings=RankSettings,
        paper="AdaRank, Lee et al. 2025, arXiv 2503.22178",
        needs=CALIBRATION,
        cost="T SVDs per matrix, whose factors are kept; steps x (T batches, T products with each matrix)",
        breaks={"one task": ENTROPY, "equal experts": ENTROPY},
        executes=True,
    ),
    "frank_wolfe": Method(
        build=_learned,
        settings=FrankWolfeSettings,
        paper="FW-Merging, Chen et al. 2025, arXiv 2503.12649",
        needs=CALIBRATION,
        cost="steps x T batches",
        executes=True,
    ),
}
