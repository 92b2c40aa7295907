"""Prediction-powered inference: a mean on many inputs without labels, corrected on a few with them.

Angelopoulos, Bates, Fannjiang, Jordan, Zrnic, "Prediction-powered inference", Science 382 (2023), for the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bounds.types import Estimate, refuse
from bounds.validation import check_finite


@dataclass(frozen=True)
class PredictionPowered:
    """``predicted`` is the mean prediction, ``rectifier`` what it lacks on average, ``rectified`` their sum."""

    predicted: Estimate
    rectifier: Estimate
    rectified: Estimate


def prediction_powered(predictions: Tensor, on_labelled: Tensor, outcomes: Tensor) -> PredictionPowered:
    """Estimate the mean of an outcome from predictions of it, and correct it where outcomes are known.

    E[Y] = E[f(X)] + E[Y - f(X)], each mean on its own sample, whatever the predictions f are worth: poor ones cost
    width, not truth. The two samples are independent, so their squared standard errors add.

    Args:
        predictions: f [N] on inputs without labels.
        on_labelled: f [n] on other inputs of the same distribution, independent of the first.
        outcomes: Y [n] on these.

    Returns:
        Estimates in units of the outcome; ``rectified`` counts n + N examples and is not clipped to the outcome's
        range. Status: ``predicted`` assumed (that f is right on average), the others estimated.

    Raises:
        InputError: an empty sample, lengths that differ, numbers that are not finite.

    Source: the paper of this module, mean estimation.
    """
    if on_labelled.shape != outcomes.shape or on_labelled.ndim != 1:
        got = (tuple(on_labelled.shape), tuple(outcomes.shape))
        refuse("labelled predictions and outcomes", expected="two tensors [n]", got=got, cure="pair them")
    predicted = Estimate.of_mean(check_finite(predictions, "predictions"), "assumed")
    rectifier = Estimate.of_mean(check_finite(outcomes, "outcomes") - check_finite(on_labelled, "predictions"))
    rectified = Estimate(
        predicted.value + rectifier.value,
        math.hypot(predicted.stderr, rectifier.stderr),
        predicted.n + rectifier.n,
        "estimated",
    )
    return PredictionPowered(predicted, rectifier, rectified)
