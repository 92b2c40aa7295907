"""The theorems, assembled from statistics into bounds whose terms sum to their value (docs/theory.md 3-7).

Nothing here touches a network: every argument is a number with its standard error and status.
"""

from bounds.theorems.anchors import SampleSize, examples_for_slack, isotropic_slack, slack, slacks
from bounds.theorems.choice import Moments, PosteriorChoice, choose_posterior
from bounds.theorems.direct import direct_form, pooled_direct_form
from bounds.theorems.experts import AnchorStatistics, Experts, MergeAnchor, PosteriorStatistics
from bounds.theorems.mixture import theorem1
from bounds.theorems.single_model import READINGS, Corrected, MergedModel, ReadAs, Reading, theorem2, vertices
from bounds.theorems.student import argmax_error, theorem3
from bounds.theorems.terms import KIND_OF, KINDS, TermKind
from bounds.theorems.weights import PerExpert, Weights

__all__ = [
    "KINDS",
    "KIND_OF",
    "READINGS",
    "AnchorStatistics",
    "Corrected",
    "Experts",
    "MergeAnchor",
    "MergedModel",
    "Moments",
    "PerExpert",
    "PosteriorChoice",
    "PosteriorStatistics",
    "ReadAs",
    "Reading",
    "SampleSize",
    "TermKind",
    "Weights",
    "argmax_error",
    "choose_posterior",
    "direct_form",
    "examples_for_slack",
    "isotropic_slack",
    "pooled_direct_form",
    "slack",
    "slacks",
    "theorem1",
    "theorem2",
    "theorem3",
    "vertices",
]
