"""The theorems, assembled from statistics into bounds whose terms sum to their value (docs/theory.md 3-7).

Nothing here touches a network: every argument is a number with its standard error and status.
"""

from bounds.theorems.choice import Moments, PosteriorChoice, choose_posterior
from bounds.theorems.direct import direct_form, pooled_direct_form
from bounds.theorems.experts import AnchorStatistics, MergeAnchor, PosteriorStatistics
from bounds.theorems.mixture import theorem1
from bounds.theorems.single_model import theorem2, vertices
from bounds.theorems.student import argmax_error, theorem3

__all__ = [
    "AnchorStatistics",
    "MergeAnchor",
    "Moments",
    "PosteriorChoice",
    "PosteriorStatistics",
    "argmax_error",
    "choose_posterior",
    "direct_form",
    "pooled_direct_form",
    "theorem1",
    "theorem2",
    "theorem3",
    "vertices",
]
