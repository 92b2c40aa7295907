"""Rows of the table of unlabelled objectives: how far the merged model's scores are from a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, float], Tensor]
"""(student scores [N, C], teacher scores [N, C], temperature) -> mean loss over the N examples."""


def teacher_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) at temperature u, mean over examples, without the factor u² (SAMerging, arXiv 2512.21288).

    Both sides go through log_softmax, so scores of any size give finite values.
    """
    return F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


OBJECTIVES: Mapping[str, Objective] = {"kl": teacher_kl}
