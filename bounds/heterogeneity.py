"""How much the tasks disagree: the cross-risk matrix and H_Q (docs/theory.md (1))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds.scores import cross_entropy, cross_entropy_slope, zero_one_loss
from bounds.types import Estimate, refuse
from bounds.validation import check_count, check_finite, check_labels, check_positive, check_weights

LossKind = Literal["cross-entropy", "0-1", "brier"]
LOSS_KINDS: tuple[LossKind, ...] = ("cross-entropy", "0-1", "brier")


def pointwise_losses(scores: Tensor, labels: Tensor, kind: LossKind, *, temperature: float = 1.0) -> Tensor:
    """Return the loss of every example, without reduction.

    Args:
        scores: [..., N, C], e.g. posterior draws or experts in front.
        labels: [N] integers in 0..C-1.
        kind: "cross-entropy" in nats, "0-1" (argmax wrong), or "brier" (squared distance of the
            probabilities to the one-hot label, in [0, 2]).
        temperature: scores are divided by it.

    Returns:
        [..., N] float64 on the CPU.

    Raises:
        InputError: non-finite scores, fewer than two axes, labels out of range, unknown kind.

    Source: docs/theory.md section 0.
    """
    if scores.ndim < 2:
        refuse("scores", expected="[..., N, C]", got=tuple(scores.shape), cure="keep the class axis last")
    scores = check_finite(scores, "scores") / check_positive(temperature, "temperature")
    labels = check_labels(labels, scores.shape[-2], scores.shape[-1])
    if kind == "cross-entropy":
        return cross_entropy(scores, labels)
    if kind == "0-1":
        return zero_one_loss(scores, labels)
    if kind != "brier":
        refuse("loss", expected=LOSS_KINDS, got=kind, cure="choose one of these")
    return cross_entropy_slope(scores, labels).square().sum(-1)


@dataclass(frozen=True)
class CrossRisk:
    """R_ij = L_i(Q_j), the risk on task i of expert (or posterior) j.

    ``risk`` [T, T]; ``covariance`` [T, T, T]: of the columns' losses on one example of task i (ddof 1);
    ``sizes`` the number m_i of held-out examples. All float64. Status: estimated.
    """

    risk: Tensor
    covariance: Tensor
    sizes: tuple[int, ...]

    @property
    def stderr(self) -> Tensor:
        """[T, T] standard errors of the entries (inf where m_i = 1)."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        variance = torch.diagonal(self.covariance, dim1=1, dim2=2) / sizes[:, None]
        return torch.where((sizes > 1)[:, None], variance.clamp_min(0.0).sqrt(), math.inf)


def cross_risk(losses: Sequence[Tensor]) -> CrossRisk:
    """Estimate the cross-risk matrix from held-out losses.

    Args:
        losses: per task i a tensor [m_i, T]: the loss on each of its held-out examples under each expert j
            (all columns on the same examples; entries may be means over posterior draws, in which case the
            standard errors leave out what the draws, common to all examples, add).

    Returns:
        CrossRisk: means over examples.

    Raises:
        InputError: no task, wrong shape, empty split, or non-finite losses.

    Source: docs/theory.md (1). Status: estimated.
    """
    tasks = len(losses)
    if tasks == 0:
        refuse("losses", expected="at least one task", got="none", cure="pass one tensor per task")
    rows = [_checked(table, tasks, i) for i, table in enumerate(losses)]
    covariance = torch.stack(
        [torch.cov(r.T).reshape(tasks, tasks) if len(r) > 1 else torch.zeros(tasks, tasks).double() for r in rows]
    )
    return CrossRisk(torch.stack([r.mean(0) for r in rows]), covariance, tuple(len(r) for r in rows))


def _checked(table: Tensor, tasks: int, task: int) -> Tensor:
    if table.ndim != 2 or table.shape[1] != tasks:
        expected = f"[examples, {tasks}]"
        refuse(f"losses of task {task}", expected=expected, got=tuple(table.shape), cure="one column per expert")
    return check_finite(table, f"losses of task {task}")


def heterogeneity(
    losses: Sequence[Tensor] | CrossRisk,
    alpha: Sequence[float] | Tensor,
    beta: Sequence[float] | Tensor,
    *,
    bootstrap: int = 0,
    seed: int = 0,
) -> Estimate:
    """Estimate H_Q(alpha, beta) = alpha^T R beta - diag(R)^T beta; may be negative.

    The standard error is exact for means: SE^2 = sum_i Var[alpha_i sum_j beta_j l_j - beta_i l_i]/m_i, the
    examples of a task being shared by the columns. With ``bootstrap`` resamples (of whole examples, within
    tasks) it is the bootstrap's instead, as a check.

    Args:
        losses: as ``cross_risk``, or its result (not with ``bootstrap``).
        alpha: evaluation weights [T] on the simplex.
        beta: merging weights [T] on the simplex.
        bootstrap: number of resamples, 0 for the formula.
        seed: of the resampling.

    Returns:
        Estimate in units of the loss, n = sum of the m_i that enter. Status: estimated.

    Raises:
        InputError: as ``cross_risk``; weights off the simplex; bootstrap without the losses.

    Source: docs/theory.md (1).
    """
    table = losses if isinstance(losses, CrossRisk) else cross_risk(losses)
    tasks = len(table.sizes)
    evaluation = torch.tensor(check_weights(alpha, tasks, "alpha"), dtype=torch.float64)
    merging = torch.tensor(check_weights(beta, tasks, "beta"), dtype=torch.float64)
    # (1): row i of ``combination`` weighs the columns' losses on the examples of task i.
    combination = torch.outer(evaluation, merging) - torch.diag(merging)
    value = float((combination * table.risk).sum())
    used = [i for i in range(tasks) if bool((combination[i] != 0.0).any())]
    if bootstrap:
        if isinstance(losses, CrossRisk):
            refuse("bootstrap", expected="the losses", got="CrossRisk", cure="pass the losses themselves")
        stderr = _bootstrap_stderr([losses[i].double() @ combination[i] for i in used], bootstrap, seed)
    elif any(table.sizes[i] == 1 for i in used):
        stderr = math.inf
    else:
        variance = torch.einsum("ij,ijk,ik->i", combination, table.covariance, combination)
        stderr = math.sqrt(sum(max(float(variance[i]), 0.0) / table.sizes[i] for i in used))
    return Estimate(value, stderr, sum(table.sizes[i] for i in used), "estimated")


def _bootstrap_stderr(contributions: Sequence[Tensor], resamples: int, seed: int) -> float:
    """Return the standard deviation over resamples of the sum of the tasks' mean contributions."""
    generator = torch.Generator().manual_seed(seed)
    totals = torch.zeros(check_count(resamples, "bootstrap resamples"), dtype=torch.float64)
    for values in contributions:
        values = values.detach().cpu()
        for draw in range(resamples):
            totals[draw] += values[torch.randint(len(values), (len(values),), generator=generator)].mean()
    return float(totals.std()) if resamples > 1 else math.inf
