"""Rows of the table of unlabelled objectives: how far the merged model's scores are from a teacher's, or how unsure.

With p = softmax(teacher/u), q = softmax(student/u) at temperature u. Everything goes through log_softmax and logsumexp,
so scores of any size give finite values and gradients. No row carries the factor u².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, float], Tensor]
"""(student scores [N, C], teacher scores [N, C], temperature) -> mean loss over the N examples (nats, or squared)."""


def teacher_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p ‖ q), mean over examples (SAMerging, arXiv 2512.21288)."""
    return _kl(_log(teacher, temperature), _log(student, temperature))


def student_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(q ‖ p), mean over examples: the other direction, which seeks the teacher's modes."""
    return _kl(_log(student, temperature), _log(teacher, temperature))


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence ½KL(p ‖ m) + ½KL(q ‖ m), m = (p + q)/2, in [0, ln 2], mean over examples."""
    p, q = _log(teacher, temperature), _log(student, temperature)
    m = torch.logsumexp(torch.stack([p, q]), dim=0) - math.log(2)
    return (_kl(p, m) + _kl(q, m)) / 2


def hard_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of q at the teacher's most likely class, mean over examples (self-labels)."""
    return F.cross_entropy(student / temperature, teacher.argmax(dim=-1))


def squared_error(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over examples and columns of ((student - teacher)/u)²."""
    return F.mse_loss(student / temperature, teacher / temperature)


def entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Shannon entropy of q, mean over examples; the teacher is not used (AdaMerging, arXiv 2310.02575, equation 4)."""
    q = _log(student, temperature)
    return -(q.exp() * q).sum(dim=-1).mean()


def _log(scores: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(scores / temperature, dim=-1)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left ‖ right) of log-probabilities [N, C], mean over examples; equals F.kl_div(right, left, "batchmean")."""
    return F.kl_div(right, left, reduction="batchmean", log_target=True)


OBJECTIVES: Mapping[str, Objective] = {
    "kl": teacher_kl,
    "reverse-kl": student_kl,
    "jensen-shannon": jensen_shannon,
    "cross-entropy": hard_cross_entropy,
    "squared": squared_error,
    "entropy": entropy,
}
