"""Scores of classifiers: the gate they pass where they are made, and the softmax figures computed from them.

Every softmax, cross-entropy and Kullback-Leibler divergence of the project is one of these functions. All go through
``log_softmax``, so that scores of any finite size give finite values and gradients. Natural logarithms (nats).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.types import refuse


def check_scores(
    scores: Tensor, examples: int, classes: int | None = None, what: str = "scores", positions: int | None = None
) -> Tensor:
    """Return the scores as they are, when they are a finite float tensor [examples, classes].

    The one gate: an argmax of NaN is class 0, so that a network that broke down would pass for one that is right
    wherever the label is 0. Equal scores for every class are no fault.

    Args:
        scores: what a network returned.
        examples: N, the number of examples it was given.
        classes: C, the number of classes; None: any.
        what: whose scores, named in the error: task, split and model.
        positions: L of a network that scores every position of an example: [examples, positions, classes]. Such scores
            are not looked at for NaN here: positions that do not count may hold anything.

    Raises:
        InputError: another shape, not floating point, NaN or infinity (with the number of examples that have one).
    """
    width = "C" if classes is None else classes
    inner = () if positions is None else (positions,)
    if scores.ndim != 2 + len(inner) or scores.shape[:-1] != (examples, *inner) or not scores.is_floating_point():
        cure = "return one row of scores per example" if positions is None else "return one row of scores per position"
        expected = f"a float tensor [{', '.join(map(str, (examples, *inner, width)))}]"
        refuse(what, expected=expected, got=f"{scores.dtype} {list(scores.shape)}", cure=cure)
    if classes is not None and scores.shape[-1] != classes:
        refuse(
            what,
            expected=f"{classes} scores of an example, one for each class name",
            got=scores.shape[-1],
            cure="list the head's classes in class_names, or take the task's own head",
        )
    return scores if inner else check_finite(scores, what)


def check_finite(rows: Tensor, what: str = "scores") -> Tensor:
    """Return rows of scores [M, C] as they are, when all are finite.

    Raises:
        InputError: NaN or infinity, with the number of rows that have one.
    """
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        bad, first = int((~finite).sum()), int(finite.int().argmin())
        refuse(
            what,
            expected="finite numbers",
            got=f"NaN or infinity for {bad} of {len(rows)} examples (first: {first})",
            cure="check these inputs and the weights, or compute in a wider precision",
        )
    return rows


def log_probabilities(scores: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return log softmax(scores/u) over the last axis, u the temperature. Exact."""
    return F.log_softmax(scores / temperature, dim=-1)


def probabilities(scores: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return softmax(scores/u) over the last axis, u the temperature. Exact."""
    return F.softmax(scores / temperature, dim=-1)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(scores)[label] of every example [..., N], from scores [..., N, C] and labels [N]. Exact."""
    flat = labels.expand(scores.shape[:-1]).flatten()
    return F.cross_entropy(scores.flatten(0, -2), flat, reduction="none").view(scores.shape[:-1])


def mean_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of :func:`cross_entropy` over the N examples of scores [N, C]. Exact."""
    return F.cross_entropy(scores, labels)


def check_floor(floor: float) -> float:
    """Return the share eps of the uniform distribution in smoothed predictions, in (0, 1).

    Raises:
        InputError: outside (0, 1).
    """
    if not 0.0 < floor < 1.0:
        refuse("eps of smoothed predictions", expected="in (0, 1)", got=floor, cure="0.02 is what the report uses")
    return float(floor)


def smoothed_losses(scores: Tensor, floor: float) -> Tensor:
    """Return -ln q_k [..., C] of q = (1 - eps) softmax(scores) + eps/C, in float64.

    Every entry is the cross-entropy that an example would have with label k. All lie in [0, ln(C/eps)], whatever the
    scores; the largest entry of q is where that of the scores is.

    Args:
        scores: [..., C].
        floor: eps in (0, 1).

    Raises:
        InputError: eps outside (0, 1).

    Source: docs/theory.md (19). Status: exact.
    """
    share = check_floor(floor)
    return -torch.log((1.0 - share) * probabilities(scores.double()) + share / scores.shape[-1])


def smoothed_cross_entropy(scores: Tensor, labels: Tensor, floor: float) -> Tensor:
    """Return :func:`smoothed_losses` at the labels [N] of scores [..., N, C]: [..., N]. Exact."""
    losses = smoothed_losses(scores, floor)
    return losses.gather(-1, labels.expand(losses.shape[:-1])[..., None])[..., 0]


def largest_smoothed_loss(classes: int, floor: float) -> float:
    """Return ln(C/eps), which no smoothed cross-entropy exceeds. Exact."""
    return math.log(classes / check_floor(floor))


def zero_one_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the largest of scores [..., N, C] is not at the label [N], else 0: [..., N], float64. Exact."""
    return (scores.argmax(-1) != labels).double()


def cross_entropy_slope(scores: Tensor, labels: Tensor) -> Tensor:
    """Return p - e_y [..., N, C], the gradient of :func:`cross_entropy` in an example's scores. Exact."""
    return probabilities(scores) - F.one_hot(labels, scores.shape[-1])


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) of every example [...], from log-probabilities [..., C]. Exact."""
    return _kl_entries(log_p, log_q).sum(-1)


def mean_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the mean of :func:`kl` over the N examples of log-probabilities [N, C]. Exact."""
    return _kl_entries(log_p, log_q).sum() / len(log_p)


def kl_slope(log_p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """Return (q - p)/u [..., C], the gradient of KL(p ‖ q) in the scores that q is the softmax of, at u. Exact."""
    return (q - log_p.exp()) / temperature


def _kl_entries(log_p: Tensor, log_q: Tensor) -> Tensor:
    return log_p.exp() * (log_p - log_q)
