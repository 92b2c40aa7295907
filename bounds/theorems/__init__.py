"""The theorems, assembled from statistics into bounds whose terms sum to their value (docs/theory.md 3-7)."""

from bounds.theorems.choice import Moments, PosteriorChoice, choose_posterior
from bounds.theorems.direct import direct_form, pooled_direct_form
from bounds.theorems.experts import AnchorStatistics, MergeAnchor, PosteriorStatistics
from bounds.theorems.mixture import argmax_error, theorem1, theorem3
from bounds.theorems.single_model import theorem2, vertices

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
