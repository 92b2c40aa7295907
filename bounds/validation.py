"""Checks at the door, shared by the statistical modules: each returns the clean value or refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.types import Estimate, refuse

SIMPLEX_TOLERANCE = 1e-6


def check_delta(delta: float, what: str = "delta") -> float:
    """Return a failure probability, strictly between 0 and 1.

    Raises:
        InputError: outside (0, 1) or not a number.
    """
    if not 0.0 < delta < 1.0:
        refuse(what, expected="a probability strictly between 0 and 1", got=delta, cure="use e.g. 0.05")
    return float(delta)


def check_weights(weights: Sequence[float] | Tensor, count: int, what: str) -> tuple[float, ...]:
    """Return ``count`` weights on the simplex (non-negative, summing to 1 within 1e-6).

    Raises:
        InputError: wrong number, not finite, negative, or not summing to 1.
    """
    values = tuple(float(w) for w in weights)
    if len(values) != count:
        refuse(what, expected=f"{count} weights", got=len(values), cure="give one weight per task")
    if not all(math.isfinite(w) and w >= 0.0 for w in values) or abs(sum(values) - 1.0) > SIMPLEX_TOLERANCE:
        refuse(what, expected="non-negative weights summing to 1", got=values, cure="normalise the weights")
    return values


def check_count(n: int, what: str) -> int:
    """Return a number of examples (or draws, models, grid points), at least 1.

    Raises:
        InputError: not a whole number, or below 1.
    """
    if int(n) != n or n < 1:
        refuse(what, expected="a whole number >= 1", got=n, cure="pass a non-empty sample")
    return int(n)


def check_positive(value: float, what: str) -> float:
    """Return a finite number > 0.

    Raises:
        InputError: zero, negative or not finite.
    """
    if not (math.isfinite(value) and value > 0.0):
        refuse(what, expected="a finite number > 0", got=value, cure="check its units and how it was computed")
    return float(value)


def check_nonnegative(value: float, what: str) -> float:
    """Return a finite number >= 0.

    Raises:
        InputError: negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0.0):
        refuse(what, expected="a finite number >= 0", got=value, cure="check how it was computed")
    return float(value)


def check_estimate(estimate: Estimate, what: str, *, signed: bool = False) -> Estimate:
    """Return an estimate whose value is finite and, unless ``signed``, non-negative.

    Raises:
        InputError: value not finite or of the wrong sign, or standard error negative or not a number.
    """
    if not math.isfinite(estimate.value) or (estimate.value < 0.0 and not signed):
        expected = "a finite value" if signed else "a finite value >= 0"
        refuse(what, expected=expected, got=estimate.value, cure="check how it was computed")
    if not estimate.stderr >= 0.0:
        refuse(f"{what} (standard error)", expected=">= 0", got=estimate.stderr, cure="check how it was computed")
    return estimate


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """Return ``tensor`` in float64 on the CPU, without gradient, when every entry is finite.

    Raises:
        InputError: an entry is NaN or infinite, or the tensor is empty.
    """
    tensor = tensor.detach().to("cpu", torch.float64)
    if tensor.numel() == 0:
        refuse(
            what,
            expected="at least one entry",
            got=f"shape {tuple(tensor.shape)}",
            cure="pass a non-empty split",
        )
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        refuse(what, expected="finite numbers", got=f"{bad} NaN or infinite", cure="look for overflow upstream")
    return tensor


def class_indices(labels: Tensor, examples: int, classes: int, what: str = "labels") -> Tensor:
    """Return labels as int64 [examples], each in 0..classes-1, on the device where they are.

    Integers of any kind, booleans and a column [examples, 1] are converted. Floats are refused even where they are
    whole: they are how probabilities and targets of a regression come; so is a one-hot matrix.

    Raises:
        InputError: wrong shape, not integers, or out of range.
    """
    labels = labels.detach()
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        refuse(what, expected="integers, the indices of classes", got=labels.dtype, cure="if they are, pass .long()")
    if labels.shape == (examples, 1):
        labels = labels[:, 0]
    if labels.shape != (examples,):
        one_hot = labels.ndim == 2 and len(labels) == examples
        cure = "of a one-hot matrix take .argmax(dim=1)" if one_hot else "give one label per example"
        refuse(what, expected=f"shape ({examples},)", got=tuple(labels.shape), cure=cure)
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        cure = "match labels to the head, and list every class in class_names"
        refuse(what, expected=f"labels in 0..{classes - 1}", got=f"{low}..{high}", cure=cure)
    return labels


def check_labels(labels: Tensor, examples: int, classes: int) -> Tensor:
    """Return :func:`class_indices` on the CPU.

    Raises:
        InputError: wrong shape, not integers, or out of range.
    """
    return class_indices(labels, examples, classes).cpu()
