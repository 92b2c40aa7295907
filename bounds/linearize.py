"""The linearised network f^lin, directional derivatives, and the error of leaving the linear regime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.autodiff import batches, check_displacement, check_inputs, check_params, differentiable
from bounds.jacobian import BATCH_SIZE, directional
from bounds.types import Forward, Inputs, Params, refuse


def linearize(forward: Forward, params0: Params) -> Forward:
    """Return f^lin_θ(x) = f_{θ0}(x) + J(x)(θ - θ0), J at θ0, evaluated by one JVP.

    The result is itself differentiable with respect to θ, to any order and in either mode.

    Args:
        forward: (θ, x [N, ...]) -> scores [N, C].
        params0: the anchor θ0.

    Returns:
        (θ, x [N, ...]) -> linearised scores [N, C]; θ must have the names and shapes of θ0.

    Raises:
        InputError: θ0 is empty or not finite; (from the result) θ has other names, shapes or dtypes.

    Source: docs/theory.md, section 0. Status: exact.
    """
    check_params(params0, what="linearisation point")
    anchor = {name: value.detach() for name, value in params0.items()}

    def linear_forward(params: Params, inputs: Inputs) -> Tensor:
        _check_same_layout(params, anchor)
        displacement = {name: params[name] - value for name, value in anchor.items()}
        with differentiable():
            scores0, change = directional(forward, anchor, inputs, displacement)
        return scores0 + change

    return linear_forward


def _check_same_layout(params: Params, anchor: Params) -> None:
    def layout(p: Params) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (value.shape, value.dtype) for name, value in p.items()}

    got, expected = layout(params), layout(anchor)
    if got != expected:
        differing = sorted(k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k))
        refuse(
            "parameters",
            expected="the names, shapes and dtypes of the linearisation point",
            got=f"differences at {differing[:3]}",
            cure="use parameters of the same model",
        )


def jvp_scores(
    forward: Forward,
    params0: Params,
    inputs: Inputs,
    displacements: Sequence[Params],
    *,
    batch_size: int = BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """Scores at θ0 and their directional derivatives along every displacement.

    The derivatives are linear in the displacements, so the linearised scores of every merge Σ_d λ_d τ_d
    follow from one call by contraction. One JVP per displacement and batch: on a CPU at the scale of a ViT,
    vmapping over the displacements saves under a fifth of the time and costs a stacked copy of all of them.

    Args:
        forward: (θ, x [N, ...]) -> scores [N, C].
        params0: θ0.
        inputs: N examples.
        displacements: D displacements of θ0; names that are missing from one count as 0 there.
        batch_size: examples per JVP.

    Returns:
        f_{θ0}(x) [N, C] and J(x) d [D, N, C], both in the dtype of the scores and detached.

    Raises:
        InputError: no examples, θ0 or a displacement not finite or of another layout.

    Source: docs/theory.md, section 0. Status: exact.
    """
    check_params(params0, what="linearisation point")
    check_inputs(inputs)
    for index, displacement in enumerate(displacements):
        check_displacement(displacement, params0, what=f"displacement {index}")
    scores, changes = [], []
    with torch.no_grad(), differentiable():
        for batch in batches(inputs, batch_size):
            along = [directional(forward, params0, batch, displacement) for displacement in displacements]
            scores.append(along[0][0] if along else forward(params0, batch))
            changes.append(torch.stack([change for _, change in along]) if along else scores[-1][:0][None][:0])
    all_scores = torch.cat(scores)
    if not displacements:
        return all_scores, all_scores.new_zeros(0, *all_scores.shape)
    return all_scores, torch.cat(changes, dim=1)


@dataclass(frozen=True)
class TransferError:
    """Per-example transfer errors of cross-entropy, in nats: ``positive`` e⁺ [N] and ``absolute`` e [N]."""

    positive: Tensor
    absolute: Tensor


def transfer_error(scores: Tensor, linear_scores: Tensor) -> TransferError:
    """How much cross-entropy can differ between the network and its linearisation, whatever the label.

    e⁺ = max_k log(p^lin_k / p_k) >= ℓ(f, y) - ℓ(f^lin, y) and e = ‖log softmax f - log softmax f^lin‖_∞.

    Args:
        scores: f_θ(x) [N, C].
        linear_scores: f^lin_θ(x) [N, C].

    Returns:
        e⁺ [N] >= 0 and e [N] >= e⁺ in the dtype of the scores; no reduction over examples.

    Raises:
        InputError: shapes differ, are not [N, C], or values are not finite.

    Source: docs/theory.md (7). Status: exact per example; its mean over a sample is estimated.
    """
    _check_score_pair(scores, linear_scores)
    difference = linear_scores.log_softmax(-1) - scores.log_softmax(-1)
    # Both rows sum to 1 after exp, so the maximum is >= 0 up to rounding.
    positive = difference.amax(-1).clamp(min=0)
    return TransferError(positive, torch.maximum(positive, difference.abs().amax(-1)))


def residual(scores: Tensor, linear_scores: Tensor, scores0: Tensor) -> float:
    """‖f_θ - f^lin_θ‖ / ‖f_θ - f_{θ0}‖, Frobenius norms over the batch; 0 where f_θ = f_{θ0} = f^lin_θ.

    Args:
        scores: f_θ(x) [N, C].
        linear_scores: f^lin_θ(x) [N, C].
        scores0: f_{θ0}(x) [N, C].

    Returns:
        The ratio: 0 in the linear regime, infinity if only the linearisation moved.

    Raises:
        InputError: shapes differ, are not [N, C], or values are not finite.

    Source: docs/theory.md, section 6. Status: exact for the batch.
    """
    _check_score_pair(scores, linear_scores)
    _check_score_pair(scores, scores0)
    error = float(torch.linalg.vector_norm((scores - linear_scores).double()))
    moved = float(torch.linalg.vector_norm((scores - scores0).double()))
    if moved == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / moved


def _check_score_pair(scores: Tensor, others: Tensor) -> None:
    for tensor in (scores, others):
        if tensor.ndim != 2 or 0 in tensor.shape or tensor.shape != scores.shape:
            refuse(
                "scores",
                expected=f"a non-empty matrix [N, C] like {list(scores.shape)}",
                got=list(tensor.shape),
                cure="pass the scores of the same examples",
            )
        if not torch.isfinite(tensor).all():
            refuse("scores", expected="finite values", got="NaN or infinity", cure="look for overflow upstream")
