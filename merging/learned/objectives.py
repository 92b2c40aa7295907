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

from bounds.scores import log_probabilities, mean_cross_entropy, mean_kl

Objective = Callable[[Tensor, Tensor, float], Tensor]
"""(student scores [N, C], teacher scores [N, C], temperature) -> mean loss over the N examples (nats, or squared)."""


def teacher_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p ‖ q), mean over examples (SAMerging, arXiv 2512.21288)."""
    return mean_kl(log_probabilities(teacher, temperature), log_probabilities(student, temperature))


def student_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(q ‖ p), mean over examples: the other direction, which seeks the teacher's modes."""
    return mean_kl(log_probabilities(student, temperature), log_probabilities(teacher, temperature))


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence ½KL(p ‖ m) + ½KL(q ‖ m), m = (p + q)/2, in [0, ln 2], mean over examples."""
    p, q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    m = torch.logsumexp(torch.stack([p, q]), dim=0) - math.log(2)
    return (mean_kl(p, m) + mean_kl(q, m)) / 2


def hard_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of q at the teacher's most likely class, mean over examples (self-labels)."""
    return mean_cross_entropy(student / temperature, teacher.argmax(dim=-1))


def squared_error(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over examples and columns of ((student - teacher)/u)²."""
    return F.mse_loss(student / temperature, teacher / temperature)


def entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Shannon entropy of q, mean over examples; the teacher is not used (AdaMerging, arXiv 2310.02575, equation 4)."""
    q = log_probabilities(student, temperature)
    return -(q.exp() * q).sum(dim=-1).mean()


OBJECTIVES: Mapping[str, Objective] = {
    "kl": teacher_kl,
    "reverse-kl": student_kl,
    "jensen-shannon": jensen_shannon,
    "cross-entropy": hard_cross_entropy,
    "squared": squared_error,
    "entropy": entropy,
}

UNTAUGHT = (entropy,)
"""Rows that look at the student alone."""
LIKELIEST = (hard_cross_entropy,)
"""Rows that ask for the teacher's likeliest class and no more."""
