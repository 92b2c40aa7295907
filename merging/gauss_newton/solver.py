"""Gauss-Newton in coefficient space: coefficients from linearised scores, far fewer passes than descent on λ.

Every iteration visits a batch of calibration examples at λ_k (:mod:`merging.gauss_newton.linearised`), solves the
convex problem of all the linearisations kept so far around λ_k with damping μ (Levenberg 1944, Marquardt 1963), and
takes the step only if the network does not contradict it on the examples that are checked. There, let e be the mean
excess of the network's KL over the linearised one at the candidate, s its standard error as an estimate for all
visited examples (0 when all are checked), v the share of examples visited, and d the fall that the model predicts:
ratio = 1 - (v e - min(2 v s, d)) / d. With every example visited and checked this is the classical actual / predicted.
Ratios below 1/4 double μ, above 3/4 halve it; at 0 or below the step is not taken and μ grows fourfold. So a step is
refused when the network's rise is significant, or, whatever the doubt, as large as the promised fall.

Row ``gauss_newton`` revisits examples in small batches with one cotangent each (rank-one updates of each Jacobian).
With ``batch=None, cotangents=None, check=None, least_damping=0`` it is the classical method: all examples, exact
Jacobian, exact ratio, and a calibration KL that never rises. Row ``tangent`` is the merge of the NTK regime: one exact
linearisation, solved to its optimum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.types import refuse
from merging.draws import task_generators
from merging.gauss_newton.linearised import (
    Convex,
    Linearisation,
    blank,
    divergences,
    forward_passes,
    minimise,
    scores_of,
    visit,
)
from merging.gauss_newton.settings import GaussNewtonSettings, TangentSettings
from merging.learned import Problem, prepare
from merging.rows import CALIBRATION, Merge, Method, Progress
from merging.task import Task, check_one_row
from merging.task_vectors import TaskVectors, merged

LEARN = "use samerging: Jacobians of the scores at every position are too many numbers to keep"
REFUSED, POOR, GOOD = 0.0, 0.25, 0.75
"""Ratios up to which a step is not taken, below which μ doubles, above which it halves."""


@dataclass(kw_only=True)
class State:
    """What changes: λ [T·L] (float64), μ, what is known of the scores, each task's order of visits, the history.

    ``recent`` are the iterates after the last visit of each example, one sweep's worth, or fewer at the start.
    """

    flat: Tensor
    damping: float
    models: list[Linearisation]
    orders: Sequence[Tensor]
    recent: list[Tensor] = field(default_factory=list)
    finished: bool = False
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "passes": [], "damping": []})


def init(problem: Problem, settings: TangentSettings) -> State:
    """Return the state before the first iteration: every coefficient at ``settings.init``, nothing visited."""
    tasks = len(problem.task_vectors)
    value = 1 / tasks if settings.init is None else settings.init
    flat = torch.full((tasks * len(problem.blocks),), value, dtype=torch.float64)
    generators = task_generators(problem.task_vectors.names, settings.seed + 1)
    orders = [torch.randperm(settings.examples, generator=generator) for generator in generators]
    return State(flat=flat, damping=settings.damping, models=blank(problem), orders=orders)


def coefficients(problem: Problem, state: State) -> Tensor:
    """Return λ [T, L] in the task vectors' dtype: the mean of the last sweep's iterates.

    Averaging takes out the noise of small batches (Polyak and Juditsky 1992). With ``batch=None`` a sweep is one
    iteration, and this the last iterate.
    """
    flat = torch.stack(state.recent).mean(0) if state.recent else state.flat
    dtype = next(iter(problem.task_vectors.base.values())).dtype
    return flat.view(len(problem.task_vectors), -1).to(dtype)


def _weights(problem: Problem, flat: Tensor) -> dict[str, Tensor]:
    return merged(problem.task_vectors, flat.view(len(problem.task_vectors), -1), problem.blocks)


def update(problem: Problem, settings: GaussNewtonSettings, state: State) -> State:
    """Take one iteration; returns the same state, advanced, or ``finished`` (see the module's docstring).

    History: ``loss`` the mean KL of the batch at λ_k before the step (the calibration KL itself when batch is none),
    ``passes`` all that were taken so far, ``damping`` μ after the step.

    Raises:
        InputError: a loss that is not finite, naming task and iteration.
    """
    batch = _batch(settings, state)
    passes = state.history["passes"][-1] if state.history["passes"] else 0.0
    passes += visit(problem, state.models, state.flat, _weights(problem, state.flat), batch, settings.cotangents)
    state.history["loss"].append(_loss(problem, state, batch))
    passes += _step(problem, settings, state, [index[: settings.check] for index in batch])
    state.history["passes"].append(passes)
    state.history["damping"].append(state.damping)
    state.recent = [*state.recent, state.flat][-_sweep(settings) :]
    state.finished = state.finished or _settled(settings, state.history["loss"])
    return state


def _batch(settings: GaussNewtonSettings, state: State) -> list[Tensor]:
    """Next examples of each task, in its order, from the start again after the last."""
    size = _size(settings)
    positions = torch.arange(size) + size * len(state.history["loss"])
    return [order[positions % settings.examples] for order in state.orders]


def _size(settings: GaussNewtonSettings) -> int:
    return min(settings.batch or settings.examples, settings.examples)


def _sweep(settings: GaussNewtonSettings) -> int:
    """Return the number of iterations that visit every example once."""
    return math.ceil(settings.examples / _size(settings))


def _loss(problem: Problem, state: State, batch: Sequence[Tensor]) -> float:
    """Mean KL of the examples just visited, at their visit."""
    losses = [
        divergences(model, model.scores[index], problem.settings.temperature, index).mean()
        for model, index in zip(state.models, batch, strict=True)
    ]
    for name, loss in zip(problem.task_vectors.names, losses, strict=True):
        if not bool(torch.isfinite(loss)):
            refuse(
                f"loss of task {name!r} at iteration {len(state.history['loss'])}",
                expected="a finite number",
                got=float(loss),
                cure="check the experts, or raise damping",
            )
    return float(torch.stack(losses).mean())


def _step(problem: Problem, settings: GaussNewtonSettings, state: State, check: Sequence[Tensor]) -> float:
    """Look for a step that the network agrees with, and take it; returns the passes of the checks."""
    convex = Convex(state.models, problem.settings.temperature, settings.rho)
    before, passes = convex.loss(state.flat), 0.0
    share = sum(float(model.seen.double().mean()) for model in state.models) / len(state.models)
    for _ in range(settings.attempts):
        candidate = minimise(convex, state.flat, state.damping)
        predicted = before - convex.loss(candidate)
        if predicted <= 0:
            break
        excess = _excess(problem, state.models, candidate, check)
        passes += forward_passes(check)
        doubt = min(2 * share * float(_standard_error(excess, state.models)), predicted)
        ratio = 1 - (share * float(excess.mean()) - doubt) / predicted
        taken = ratio > REFUSED  # false for nan, too
        factor = (0.5 if ratio > GOOD else 2 if ratio < POOR else 1) if taken else 4
        state.damping = max(factor * state.damping, settings.least_damping)
        if taken:
            state.flat = candidate
            return passes
    state.finished = True
    return passes


def _excess(problem: Problem, models: Sequence[Linearisation], flat: Tensor, check: Sequence[Tensor]) -> Tensor:
    """How much the network's KL exceeds the linearised one at λ: [T, examples of ``check``]."""
    theta, result = _weights(problem, flat), []
    for task, (model, index) in enumerate(zip(models, check, strict=True)):
        both = scores_of(problem, theta, task, index), model.at(flat, index)
        actual, linear = (divergences(model, scores, problem.settings.temperature, index) for scores in both)
        result.append(actual - linear)
    return torch.stack(result)


def _standard_error(excess: Tensor, models: Sequence[Linearisation]) -> Tensor:
    """Of the mean excess as an estimate for all visited examples, which are a finite population."""
    checked, visited = excess.numel(), sum(int(model.seen.sum()) for model in models)
    if checked in (1, visited):
        return torch.zeros(())
    return excess.std() * math.sqrt((1 - checked / visited) / checked)


def _settled(settings: GaussNewtonSettings, losses: Sequence[float]) -> bool:
    """Whether the mean loss of the last sweep is no longer below that of the sweep before by the tolerance."""
    sweep = _sweep(settings)
    if len(losses) % sweep or len(losses) < 2 * sweep:
        return False
    last, before = sum(losses[-sweep:]), sum(losses[-2 * sweep : -sweep])
    return last >= (1 - settings.tolerance) * before


def _gauss_newton(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: GaussNewtonSettings, progress: Progress
) -> Merge:
    check_one_row(tasks, "method gauss_newton", LEARN)
    problem = prepare(task_vectors, tasks, settings.learned())
    state = init(problem, settings)
    for _ in progress(range(settings.iterations), "Gauss-Newton on the coefficients"):
        state = update(problem, settings, state)
        if state.finished:
            break
    return _merge(problem, state)


def _merge(problem: Problem, state: State) -> Merge:
    lambda_ = coefficients(problem, state)
    return Merge(
        params=merged(problem.task_vectors, lambda_, problem.blocks),
        coefficients=lambda_,
        blocks=problem.blocks,
        history=state.history,
    )


def tangent(problem: Problem, settings: TangentSettings) -> State:
    """Return the merge of the NTK regime: argmin over λ of the calibration KL of f^lin, to its optimum.

    f^lin(λ) = f(θ_init) + J(θ_init) Σ_t (λ_t - init) τ_t, linearised in the weights at the merge of ``settings.init``:
    by default θ_0 (init 0), the linearisation of the theory. One exact Jacobian, one convex problem with ½μ‖λ - init‖²
    (and the sharpness penalty), no step check: the network is never asked, so where it is not linear the result may be
    worse than the init. On a network that is linear in θ it is the optimum itself, and that of ``gauss_newton``.
    """
    state = init(problem, settings)
    every = [torch.arange(settings.examples)] * len(state.models)
    passes = visit(problem, state.models, state.flat, _weights(problem, state.flat), every, None)
    state.history = {"loss": [_loss(problem, state, every)], "passes": [passes], "damping": [state.damping]}
    convex = Convex(state.models, problem.settings.temperature, settings.rho)
    state.flat, state.finished = minimise(convex, state.flat, state.damping), True
    return state


def _tangent(task_vectors: TaskVectors, tasks: Sequence[Task], settings: TangentSettings, progress: Progress) -> Merge:
    check_one_row(tasks, "method tangent", LEARN)
    problem = prepare(task_vectors, tasks, settings.learned())
    return _merge(problem, tangent(problem, settings))


ROWS: Mapping[str, Method] = {
    "gauss_newton": Method(
        build=_gauss_newton,
        settings=GaussNewtonSettings,
        paper="Gauss-Newton with adjoint Broyden updates on SAMerging's objective (arXiv 2512.21288)",
        needs=CALIBRATION,
        cost="iterations x T batches x (cotangents + 1/3 of the checked share)",
    ),
    "tangent": Method(
        build=_tangent,
        settings=TangentSettings,
        paper="the objective of SAMerging (arXiv 2512.21288) on the scores linearised at θ_0",
        needs=CALIBRATION,
        cost="C - 1 VJPs of every calibration example",
    ),
}
