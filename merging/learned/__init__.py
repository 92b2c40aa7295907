"""Coefficients learned from unlabelled examples: one loop, rows of objective x perturbation x granularity.

SAMerging (arXiv 2512.21288) is the row ``kl`` x a SAM perturbation. Each pass merges once, back-propagates every task
into the merged weights θ, and contracts ∇_θ L with the task vectors once. A SAM step is two such passes on the same
batches; the merged weights are recomputed at the perturbed point.
"""

from merging.learned.loop import State, init, learned, update
from merging.learned.problem import Problem, evaluate, prepare
from merging.learned.rows import ROWS
from merging.learned.settings import DECIDING, PER_POSITION, LearnedSettings, idle

__all__ = [
    "DECIDING",
    "PER_POSITION",
    "ROWS",
    "LearnedSettings",
    "Problem",
    "State",
    "evaluate",
    "idle",
    "init",
    "learned",
    "prepare",
    "update",
]
