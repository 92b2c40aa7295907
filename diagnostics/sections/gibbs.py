"""Certificate (10) on the pooled validation split: the randomised merge N(λ̂, s² I).

Every validation example is judged by its own draws of λ, made after the posterior is fixed. Given the split the
judgements are independent, and their mean estimates the Gibbs error of the split: the step from draws to mean is
kl^-1 at m = number of judgements (Hoeffding 1956: the kl form holds for unequal means).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bounds.autodiff import differentiable
from bounds.certificates import coefficient_kl, coefficient_pac_bayes
from bounds.types import Blocks, Bound, Inputs, Params, take
from diagnostics.cache import digest
from diagnostics.settings import COEFFICIENT_SCALES, UNIFORM_PRIORS
from diagnostics.workspace import Subject, Workspace
from merging.task import Task
from merging.task_vectors import TaskVectors, coefficient_blocks, merged

OWN_PRIOR = "λ̂ itself"
CHUNKS = 8
"""Pieces in which each task's draws are cached and spread over processes."""
TOGETHER = 16
"""Draws whose merged weights are held at once."""
PILOT = 12
"""One in so many examples is judged to choose s; those draws are thrown away."""


@dataclass(frozen=True)
class GibbsRow:
    """(10) for one prior: s, KL (nats), the mean error of m draws, what the draws and PAC-Bayes add, the total."""

    prior: str
    data_free: bool
    scale: float
    kl: float
    observed: float
    draws: int
    monte_carlo_margin: float
    pac_bayes_margin: float
    value: float
    n: int
    grid_size: int
    posteriors_seen: int
    delta: float
    assumptions: tuple[str, ...]


def certify(workspace: Workspace, subject: Subject, *, unseen: bool) -> tuple[GibbsRow, ...]:
    """Return (10) with the best data-free prior and, if the split is ``unseen`` by the merge, with the prior at λ̂.

    Empty if the merge has no coefficients, or is not their merge. δ is halved between the two steps and shared by the
    artifacts shown side by side. Both priors stand in one list, paid for together; s and the prior are chosen on a
    pilot of draws. Status: certified.
    """
    artifact = subject.artifact
    if artifact.coefficients is None or not _is_merge_of_coefficients(workspace, subject):
        return ()
    mean = artifact.coefficients.detach().double().cpu()
    free = {name: torch.full_like(mean, 1 / len(mean) if name == "1/T" else float(name)) for name in UNIFORM_PRIORS}
    groups = [free]
    if unseen and not any(torch.equal(mean, prior) for prior in free.values()):
        groups.append({OWN_PRIOR: mean})
    plan = _Plan(
        mean,
        n=sum(t["sizes"]["validation"] for t in workspace.teachers()),
        grid=sum(map(len, groups)) * len(COEFFICIENT_SCALES),
        seen=len(groups),
        delta=workspace.settings.delta / 2 / len(workspace.subjects),
    )
    pilots = {s: float(_judge(workspace, subject, s, None).double().mean()) for s in COEFFICIENT_SCALES}
    rows = []
    for group in groups:
        choices = [(prior, s) for prior in group for s in COEFFICIENT_SCALES]
        prior, scale = min(choices, key=lambda c: plan.bound(group[c[0]], c[1], pilots[c[1]], None).value)
        repeats = workspace.settings.gibbs_draws if group is groups[-1] else 1
        wrong = _judge(workspace, subject, scale, repeats)
        rows.append(_row(plan, prior, group[prior], scale, wrong))
    return tuple(rows)


@dataclass(frozen=True)
class _Plan:
    """What all statements (10) of one merge share: λ̂, n, G, G' and the δ of each of the two steps."""

    mean: Tensor
    n: int
    grid: int
    seen: int
    delta: float

    def bound(self, prior: Tensor, scale: float, rate: float, draws: int | None) -> Bound:
        """(10); ``draws`` None leaves the step from draws to mean out (for choosing)."""
        return coefficient_pac_bayes(
            rate,
            self.n,
            self.mean,
            prior,
            scale,
            delta=self.delta,
            draws=draws,
            delta_draws=self.delta,
            grid_size=self.grid,
            posteriors_seen=self.seen,
        )


def _row(plan: _Plan, name: str, prior: Tensor, scale: float, wrong: Tensor) -> GibbsRow:
    result = plan.bound(prior, scale, float(wrong.double().mean()), len(wrong))
    rate, monte_carlo, pac_bayes = (term.estimate.value for term in result.terms)
    own = ("the merge did not use the validation split, so λ̂ is a prior for it",) if name == OWN_PRIOR else ()
    return GibbsRow(
        prior=name,
        data_free=name != OWN_PRIOR,
        scale=scale,
        kl=coefficient_kl(plan.mean, prior, scale),
        observed=rate,
        draws=len(wrong),
        monte_carlo_margin=monte_carlo,
        pac_bayes_margin=pac_bayes,
        value=min(1.0, result.value),
        n=plan.n,
        grid_size=plan.grid,
        posteriors_seen=plan.seen,
        delta=result.delta,
        assumptions=(*result.assumptions, *own),
    )


def _is_merge_of_coefficients(workspace: Workspace, subject: Subject) -> bool:
    artifact = subject.artifact
    assert artifact.coefficients is not None
    again = merged(workspace.vectors, artifact.coefficients.to(workspace.device), artifact.blocks)
    theta = workspace.weights(subject)
    return all(torch.allclose(again[name], theta[name], rtol=1e-4, atol=1e-6) for name in theta)


def _judge(workspace: Workspace, subject: Subject, scale: float, repeats: int | None) -> Tensor:
    """Errors [m] (0 or 1) of independent draws of λ, ``repeats`` on every validation example; None: a pilot."""
    count = len(workspace.names)
    key = digest(workspace.key("seed"), subject.key, scale, repeats)
    pieces: Sequence[Mapping[str, Any]] = workspace.pieces(
        "gibbs",
        key,
        lambda piece: {"wrong": _judge_piece(workspace, subject, scale, piece, repeats)},
        count * (1 if repeats is None else CHUNKS),
        f"{subject.label}: draws of λ, s = {scale:g}",
    )
    return torch.cat([piece["wrong"] for piece in pieces])


def _judge_piece(workspace: Workspace, subject: Subject, scale: float, piece: int, repeats: int | None) -> Tensor:
    pilot = repeats is None
    chunks = 1 if pilot else CHUNKS
    task, lam = workspace.suite.tasks[piece // chunks], subject.artifact.coefficients
    sample = task.validation
    assert lam is not None
    assert sample.labels is not None
    lam = lam.detach()
    blocks = coefficient_blocks(workspace.vectors, lam, subject.artifact.blocks)
    seed = int(digest(workspace.settings.seed, scale, piece, repeats)[:12], 16)
    generator = torch.Generator().manual_seed(seed)
    repeats, wrong = repeats or 1, []
    examples = torch.arange(piece % chunks, len(sample), PILOT if pilot else chunks)
    with torch.no_grad(), differentiable():
        for chosen in examples.repeat_interleave(repeats).split(TOGETHER):
            noise = torch.randn(len(chosen), *lam.shape, generator=generator, dtype=lam.dtype)
            thetas = merged_draws(workspace.vectors, (lam + scale * noise).to(workspace.device), blocks)
            scores = torch.func.vmap(partial(_one, task))(thetas, take(sample.inputs, chosen))
            wrong.append((scores.argmax(dim=1) != sample.labels[chosen]).cpu())
    return torch.cat(wrong)


def _one(task: Task, theta: Params, example: Inputs) -> Tensor:
    """Scores [C] of one example."""
    batch = example[None] if isinstance(example, Tensor) else {name: value[None] for name, value in example.items()}
    return task.forward(theta, batch)[0]


def merged_draws(task_vectors: TaskVectors, coefficients: Tensor, blocks: Blocks) -> dict[str, Tensor]:
    """Return ``merging.merged`` of each of coefficients [m, T, L], stacked: name -> [m, ...]. Exact.

    Every task vector is read once for all m.
    """
    column = {name: i for i, names in enumerate(blocks.values()) for name in names}
    together = {}
    for name, base in task_vectors.base.items():
        weights, deltas = coefficients[:, :, column[name]].to(base.dtype), task_vectors.stacked[name]
        rows = torch.addmm(base.flatten(), weights, deltas.reshape(len(deltas), -1))
        together[name] = rows.view(-1, *base.shape)
    return together
