"""Scores of very many classes, told by few numbers: the likeliest classes of a teacher, and all others as one event.

A language model scores V = 50,000 tokens at every position. What a teacher says there is kept as the log-probabilities
of its k likeliest classes and of the rest together: k + 1 events. The student is coarsened to the same events. By the
data processing inequality the Kullback-Leibler divergence of coarsened distributions is no larger than that of the
distributions, it does not fall when k grows, and with k = V it is that divergence itself: the error has one sign.
Natural logarithms (nats).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.scores import log_probabilities
from bounds.types import refuse


def likeliest(scores: Tensor, k: int | None = None, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities of the k classes of the largest scores and of all others together, and these classes.

    Args:
        scores: [..., V].
        k: how many classes; None, or V and more: all of them.
        temperature: u, by which scores are divided.

    Returns:
        Log-probabilities [..., k + 1] of softmax(scores/u), the largest first and the rest last, with the classes
        [..., k] (int32); with all classes [..., V] in their own order, and None.

    Raises:
        InputError: k < 1.

    Status: exact.
    """
    if k is not None and k < 1:
        refuse("classes that are kept", expected="at least 1, or None for all", got=k, cure="raise it")
    if k is None or k >= scores.shape[-1]:
        return log_probabilities(scores, temperature), None
    classes = scores.topk(k, dim=-1).indices.to(torch.int32)
    return coarsened(scores, classes, temperature), classes


def coarsened(scores: Tensor, classes: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities [..., k + 1] of the given classes and, last, of all others together.

    The rest has the score log Σ exp(score/u) over it, taken over it alone: 1 - Σ would lose all its digits where the
    rest is small, and its gradient with them.

    Args:
        scores: [..., V], V > k.
        classes: [..., k], distinct in each row; None: all, in their own order, [..., V].
        temperature: u, by which scores are divided.

    Status: exact.
    """
    if classes is None:
        return log_probabilities(scores, temperature)
    chosen = classes.long()
    scaled = scores if temperature == 1 else scores / temperature
    rest = torch.logsumexp(scaled.scatter(-1, chosen, -math.inf), dim=-1, keepdim=True)
    return log_probabilities(torch.cat([scaled.gather(-1, chosen), rest], dim=-1))
