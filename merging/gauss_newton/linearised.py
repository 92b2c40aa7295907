"""Scores linearised in the coefficients, one linearisation per example, and the convex problem they pose.

Example i was last visited at λ_i; its scores are taken as f_i(λ) ≈ s_i + J_i (λ - λ_i) with J_i [C, T·L]. The
calibration KL of these scores is convex in λ and costs no pass through the network, so it is solved to its optimum.
An example that was never visited has constant scores.

A visit with all C - 1 centred cotangents gives J_i exactly (up to a constant per column, which the softmax ignores). A
visit with fewer updates what is known, by rank-one corrections that hold exactly afterwards: J_i Δ = Δs for the step Δ
since the last visit (Broyden), then u^T J_i = the VJP of each cotangent u (adjoint Broyden: Schlenkrich, Griewank and
Walther 2010, On the local convergence of adjoint Broyden methods). The first cotangent is the direction p - q of the
KL's gradient in the scores, so the gradient of the model at λ_i is exact after every visit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bounds.autodiff import differentiable
from bounds.scores import kl, kl_slope, log_probabilities, probabilities
from bounds.types import Params, refuse, take
from merging.gauss_newton.jacobian import FORWARD_PASSES, centred_basis, jacobian_rows, row_passes
from merging.learned import Problem
from merging.task import described, score

TOLERANCE = 1e-9
"""The convex problem is solved until a Newton step promises less than this."""
NEWTON_STEPS = 100
SINGULAR = 1e-12
"""Systems are solved with a damping of at least this share of the GGN's largest diagonal entry."""


@dataclass(kw_only=True)
class Linearisation:
    """What is known of one task's N examples: scores s [N, C] and J [N, C, T·L] at the points λ_i [N, T·L].

    Float64; the memory is N·C·T·L numbers per task.
    """

    log_teacher: Tensor
    scores: Tensor
    jacobian: Tensor
    points: Tensor
    seen: Tensor

    def at(self, flat: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Linearised scores [n, C] of the examples at λ [T·L]."""
        steps = flat - self.points[index]
        return self.scores[index] + torch.einsum("nck,nk->nc", self.jacobian[index], steps)


def blank(problem: Problem) -> list[Linearisation]:
    """Return linearisations of no example yet, one per task.

    Raises:
        InputError: a task with fewer than two scores.
    """
    entries, result = len(problem.task_vectors) * len(problem.blocks), []
    for name, teacher in zip(problem.task_vectors.names, problem.teacher_scores, strict=True):
        n, classes = teacher.shape
        if classes < 2:
            refuse(f"scores of task {name!r}", expected="at least 2", got=classes, cure="leave the task out")
        log_teacher = log_probabilities(teacher.double(), problem.settings.temperature)
        zeros = torch.zeros(n, classes, entries, dtype=torch.float64)
        result.append(
            Linearisation(
                log_teacher=log_teacher,
                scores=zeros[:, :, 0].clone(),
                jacobian=zeros,
                points=zeros[:, 0].clone(),
                seen=torch.zeros(n).bool(),
            )
        )
    return result


def scores_of(problem: Problem, theta: Params, task: int, index: Tensor) -> Tensor:
    """Scores [n, C] of the network itself, float64, under the kernels that derivatives use: a forward each."""
    with differentiable():
        what = described(problem.task_vectors.names[task], "calibration", "merged")
        classes = problem.teacher_scores[task].shape[1]
        inputs = take(problem.inputs[task], index)
        return score(problem.forwards[task], theta, inputs, classes=classes, what=what).double()


def divergences(model: Linearisation, scores: Tensor, temperature: float, index: Tensor | slice) -> Tensor:
    """KL(teacher ‖ scores) of every example [n]."""
    return kl(model.log_teacher[index], log_probabilities(scores, temperature))


def visit(
    problem: Problem,
    models: Sequence[Linearisation],
    flat: Tensor,
    theta: Params,
    batch: Sequence[Tensor],
    most: int | None,
) -> float:
    """Linearise the examples ``batch[t]`` of each task anew at λ, with at most ``most`` cotangents (none: C - 1).

    Returns:
        Passes taken.
    """
    passes, temperature = 0.0, problem.settings.temperature
    for task, (model, index) in enumerate(zip(models, batch, strict=True)):
        classes = model.scores.shape[1]
        count = min(most or classes, classes - 1)
        choose = partial(_cotangents, count=count, temperature=temperature)
        scores, cotangents, rows = jacobian_rows(problem, theta, task, index, model.log_teacher[index], choose, count)
        jacobian = _after_step(model, flat, scores, index)
        model.jacobian[index] = jacobian + cotangents.mT @ (rows - cotangents @ jacobian)
        model.scores[index], model.points[index], model.seen[index] = scores, flat, True
        passes += len(index) * row_passes(problem, count)
    return passes


def _after_step(model: Linearisation, flat: Tensor, scores: Tensor, index: Tensor) -> Tensor:
    """Broyden's update: the J nearest to the old one that explains the change of the scores since the last visit."""
    steps = torch.where(model.seen[index, None], flat - model.points[index], 0.0)
    missing = torch.where(model.seen[index, None], scores - model.at(flat, index), 0.0)
    squares = steps.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    return model.jacobian[index] + missing[:, :, None] * (steps / squares[:, None])[:, None, :]


def _cotangents(scores: Tensor, log_teacher: Tensor, count: int, temperature: float) -> Tensor:
    """Orthonormal cotangents [..., count, C]: p - q first, then leading eigenvectors of diag(p) - pp^T; or all."""
    classes = scores.shape[-1]
    if count == classes - 1:
        return centred_basis(classes).expand(*scores.shape[:-1], -1, -1)
    p = probabilities(scores, temperature)
    kernel = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    leading = torch.linalg.eigh(kernel).eigenvectors.flip(-1)
    residual = kl_slope(log_teacher, p).unsqueeze(-1)
    return torch.linalg.qr(torch.cat([residual, leading], dim=-1)[..., :count]).Q.mT


def forward_passes(batch: Sequence[Tensor]) -> float:
    """Return the passes that scoring the examples ``batch[t]`` of each task takes."""
    return FORWARD_PASSES * sum(len(index) for index in batch)


@dataclass(frozen=True)
class Convex:
    """The convex problem: mean over tasks and all examples of the KL of linearised scores, and its regularisers.

    F(λ) = KL(λ) + ρ²/(2K) tr G(λ) + μ/2 ‖λ - centre‖² with K = T·L entries; G = mean J^T (diag(p) - pp^T) J / u² is the
    GGN, so that the second term is the rise of the KL to second order, averaged over ε uniform on ‖ε‖ = ρ. For ρ = 0 F
    is convex.
    """

    models: Sequence[Linearisation]
    temperature: float
    rho: float = 0.0

    def loss(self, flat: Tensor) -> float:
        """KL + ρ²/(2K) tr G at λ, of the visited examples, over the number of all."""
        return sum(float(self._one(model, flat)[0]) for model in self.models) / len(self.models)

    def derivatives(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Exact gradient [K] of :meth:`loss`, and the GGN [K, K] of its KL."""
        gradient = torch.zeros_like(flat)
        ggn = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
        for model in self.models:
            _, slopes, p, jacobian = self._one(model, flat)
            share = 1 / (len(model.seen) * len(self.models))
            gradient += share * torch.einsum("nc,nck->k", slopes, jacobian)
            scaled = (jacobian * p.sqrt()[:, :, None]).flatten(0, 1)
            means = torch.einsum("nc,nck->nk", p, jacobian)
            ggn += share / self.temperature**2 * (scaled.T @ scaled - means.T @ means)
        return gradient, ggn

    def _one(self, model: Linearisation, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One task's loss, its slope in the scores [n, C], p [n, C] and J [n, C, K] of the visited examples."""
        seen = model.seen.nonzero().flatten()
        jacobian, scores = model.jacobian[seen], model.at(flat, seen)
        p = probabilities(scores, self.temperature)
        loss = divergences(model, scores, self.temperature, seen).sum()
        slopes = kl_slope(model.log_teacher[seen], p, self.temperature)
        if self.rho:
            factor = self.rho**2 / (2 * len(flat) * self.temperature**2)
            means = torch.einsum("nc,nck->nk", p, jacobian)
            squares = jacobian.square().sum(-1)
            loss = loss + factor * ((p * squares).sum() - means.square().sum())
            pull = squares - 2 * torch.einsum("nck,nk->nc", jacobian, means)
            slopes = slopes + factor / self.temperature * p * (pull - (p * pull).sum(-1, keepdim=True))
        return loss / len(model.seen), slopes, p, jacobian


def minimise(convex: Convex, centre: Tensor, damping: float) -> Tensor:
    """Return the minimiser [K] of F by damped Gauss-Newton with a line search from the centre; F never rises.

    ``damping`` μ > 0 makes the minimiser unique, also where G is singular. With ρ > 0 it is a stationary point.
    """
    flat, identity = centre.clone(), torch.eye(len(centre), dtype=centre.dtype)

    def value(at: Tensor) -> float:
        return convex.loss(at) + damping / 2 * float((at - centre).square().sum())

    current = value(flat)
    for _ in range(NEWTON_STEPS):
        gradient, ggn = convex.derivatives(flat)
        gradient = gradient + damping * (flat - centre)
        ridge = max(damping, SINGULAR * float(ggn.diagonal().max()))  # shortens steps, does not move the optimum
        step = -torch.linalg.solve(ggn + ridge * identity, gradient)
        promised, size = -float(gradient @ step), 1.0
        if promised < TOLERANCE * max(1e-3, current):
            break
        while (new := value(flat + size * step)) > current - 1e-4 * size * promised and size > 1e-9:
            size /= 2
        if new >= current:
            break
        flat, current = flat + size * step, new
    return flat
