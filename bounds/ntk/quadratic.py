"""The empirical neural tangent kernel K(x, x') = J(x) J(x')^T and what the bounds need of it.

Everywhere J = ∂f/∂θ [C, P] at the given parameters and, with ``centred`` (the default), J is replaced by ΠJ,
Π = I - 11^T/C: cross-entropy cannot see the all-ones direction (docs/theory.md, section 0). Only C - 1
cotangents are then needed, an orthonormal basis of the complement of 1; the results are exact all the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.autodiff import check_displacement, check_inputs, check_params, differentiable
from bounds.jacobian import BATCH_SIZE, centre, push_forward
from bounds.types import Forward, Inputs, Params


def quadratic_form(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    direction: Params,
    *,
    centred: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """‖J(x) d‖² for every example, by one JVP per batch (about three forward passes).

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs: N examples.
        direction: d, a displacement of θ; names that are missing count as 0.
        centred: ‖ΠJd‖² in place of ‖Jd‖².
        batch_size: examples per JVP.

    Returns:
        [N], float64, in squared units of the scores; no reduction over examples.

    Raises:
        InputError: bad parameters, inputs or direction.

    Source: docs/theory.md, Lemma 4 and (6). Status: exact.
    """
    check_params(params)
    check_inputs(inputs)
    check_displacement(direction, params, what="direction")
    with torch.no_grad(), differentiable():
        change = push_forward(forward, params, inputs, direction, batch_size)
    return (centre(change) if centred else change).double().square().sum(-1)
