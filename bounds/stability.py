"""How far a merge moves when one training example is replaced, and what that says of its risk (docs/theory.md (20)).

Stability is a property of how experts were trained, which no checkpoint tells. It is measured on merges that were made
again with one example replaced, or it follows from learning rates, steps and batch sizes that the caller gives. All
statements are about means over training samples: none holds with high probability, and none is certified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.types import Estimate, refuse, worst_status
from bounds.validation import check_count, check_estimate, check_finite, check_positive


def score_stability(scores: Tensor, replaced: Tensor, *, centred: bool = True) -> Estimate:
    """Return ε², the mean squared movement of the scores at a training example when that example is replaced.

    Args:
        scores: [N, C], of the merge at N training examples x_i of one task.
        replaced: [N, C], row i at the same x_i, of the merge made again with (x_i, y_i) replaced by another draw;
            everything else (other examples, noise of the training, coefficients) as before.
        centred: whether movement along the direction of all ones is left out, which cross-entropy does not see.

    Returns:
        ε² in squared scores. Status: estimated; the standard error takes the examples for independent, which they
        are given the rest of the training only approximately.

    Raises:
        InputError: shapes differ, no [N, C], not finite.

    Source: docs/theory.md (20).
    """
    if scores.ndim != 2 or scores.shape != replaced.shape:
        got = (tuple(scores.shape), tuple(replaced.shape))
        refuse("scores", expected="two tensors [N, C]", got=got, cure="pair each example with its own replacement")
    moved = check_finite(replaced, "replaced scores") - check_finite(scores, "scores")
    moved = moved - moved.mean(1, keepdim=True) if centred else moved
    return Estimate.of_mean(moved.square().sum(1))


def merged_stability(blocks: Sequence[Estimate], coefficients: Sequence[float]) -> Estimate:
    """Return ε² in weights of a linear merge on expert j's sample: Σ_b (λ_j^b)² ε²_{j,b}.

    Replacing an example of S_j moves τ_j alone, so the merge moves by λ_j^b times the expert in every block. With one
    coefficient and a network that is linear in its weights the same factor holds for ε² in scores. Rows that cut or
    rotate task vectors by their own entries (TIES, spectral rows) are no linear merges: measure them as they are.

    Args:
        blocks: per block, expert j's mean squared movement of its weights.
        coefficients: λ_j^b, fixed without any training sample of the experts.

    Returns:
        ε² in squared weights; standard errors add (an upper limit: blocks share examples).

    Raises:
        InputError: no block, unequal numbers, a negative movement, a coefficient that is not finite.

    Source: docs/theory.md (20a). Status: that of the worst block; the factor is exact.
    """
    if not blocks or len(blocks) != len(coefficients):
        got = (len(blocks), len(coefficients))
        refuse("blocks and coefficients", expected="one coefficient per block", got=got, cure="pair them")
    factors = check_finite(torch.tensor(list(coefficients), dtype=torch.float64), "coefficients")
    parts = [check_estimate(e, "stability").scaled(f**2) for e, f in zip(blocks, factors.tolist(), strict=True)]
    return Estimate(
        sum(e.value for e in parts),
        sum(e.stderr for e in parts),
        min(e.n for e in parts),
        worst_status([e.status for e in parts]),
    )


def sgd_stability(
    step_sizes: Sequence[float], *, batch: int, examples: int, gradient: float, smoothness: float
) -> Estimate:
    """Return a limit of an expert's ε² in weights from how it was trained: (21).

    ε² <= (2G/b)² [p² (Σ_k η_k)² + p(1-p) Σ_k η_k²], p = b/n. It is proved for plain stochastic gradient descent on a
    loss that is convex in the weights, such as cross-entropy of the linearised network; momentum, Adam and weight decay
    are other algorithms. Batches are drawn anew at every step or by shuffling once an epoch.

    Args:
        step_sizes: η_1..η_K of the expert's training.
        batch: b, examples per step.
        examples: n of the expert's training sample.
        gradient: G, no smaller than any ‖∇_θ ℓ‖ of a training example, old or new, at any step.
        smoothness: of the loss of one example in the weights (γ κ_op of the linearised network).

    Returns:
        ε² in squared weights. Status: assumed.

    Raises:
        InputError: no step, a step size not positive or above 2/smoothness, b > n, G or smoothness not positive.

    Source: docs/theory.md (21).
    """
    n, b = check_count(examples, "training examples"), check_count(batch, "batch size")
    if b > n:
        refuse("batch size", expected=f"at most the {n} training examples", got=b, cure="give n of this expert")
    largest = 2.0 / check_positive(smoothness, "smoothness")
    etas = [check_positive(eta, "step size") for eta in step_sizes]
    if not etas or max(etas) > largest:
        got = f"{max(etas):g}" if etas else "no step"
        refuse("step sizes", expected=f"at most 2/smoothness = {largest:g}", got=got, cure="(21) does not hold beyond")
    p = b / n
    hits = p**2 * sum(etas) ** 2 + p * (1.0 - p) * sum(eta**2 for eta in etas)
    return Estimate((2.0 * check_positive(gradient, "gradient norm") / b) ** 2 * hits, 0.0, n, "assumed")


def stable_risk(training_risk: Estimate, stability: Estimate, *, gamma: float = 0.5) -> Estimate:
    """Return the limit (20) of a merge's mean risk on a task: (√L̂ + ε√(γ/2))².

    It holds for every network and every way of merging; the loss is at least 0 and γ-smooth in the scores.

    Args:
        training_risk: L̂_j(θ_m), the merge's mean loss on expert j's training sample.
        stability: ε² in scores, of the merge, on that sample.
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy).

    Returns:
        A limit in the loss's units for the mean over training samples. Status: that of the worse input, at best
        estimated, as one sample stands in the place of their mean. Standard errors by the delta method, added.

    Raises:
        InputError: a negative or infinite input, gamma not positive.

    Source: docs/theory.md (20).
    """
    risk, moved = check_estimate(training_risk, "training risk"), check_estimate(stability, "stability")
    root, step = math.sqrt(risk.value), math.sqrt(check_positive(gamma, "gamma") * moved.value / 2.0)
    total = root + step
    spread = _spread(total, root, risk.stderr) + _spread(total, step, gamma / 2.0 * moved.stderr)
    status = worst_status([risk.status, moved.status, "estimated"])
    return Estimate(total**2, spread, risk.n, status)


def least_stability(training_risk: Estimate, risk: Estimate, *, gamma: float = 0.5) -> Estimate:
    """Return the least ε² in scores that (20) allows, given what was observed: (2/γ)(√L - √L̂)², 0 where L <= L̂.

    What a gap between training and held-out loss says of stability when nothing is known of the training: a merge whose
    experts' samples left such a gap moves at least so much when an example is replaced.

    Args:
        training_risk: L̂_j(θ_m), on the sample that expert j was trained on.
        risk: L_j(θ_m), on held-out examples.
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy).

    Returns:
        ε² in squared scores. Status: estimated (or that of a worse input); standard errors by the delta method, added.

    Raises:
        InputError: a negative or infinite input, gamma not positive.

    Source: docs/theory.md (20).
    """
    low, high = check_estimate(training_risk, "training risk"), check_estimate(risk, "risk")
    factor = 2.0 / check_positive(gamma, "gamma")
    root, target = math.sqrt(low.value), math.sqrt(high.value)
    gap = max(0.0, target - root)
    spread = factor * (_spread(gap, target, high.stderr) + _spread(gap, root, low.stderr))
    return Estimate(factor * gap**2, spread, high.n, worst_status([low.status, high.status, "estimated"]))


def _spread(total: float, root: float, stderr: float) -> float:
    """Return |d total²/d root²| · stderr: infinite at root 0, where a square root is not smooth."""
    if stderr == 0.0 or total == 0.0:
        return 0.0
    return total / root * stderr if root > 0.0 else math.inf
