"""Certificate (10) on the pooled validation split: the randomised merge N(λ̂, s² I).

Three things make it as tight as (10) allows; each is fixed before the validation labels are seen, and paid for.

- Two lists of (prior, s), with half of δ each: the data-free priors, and, where the merge never saw the split, λ̂ itself
  with one s. A statement about the second then pays neither KL nor ln G, and not for the first list either.
- The step from draws to their mean gets a small share of δ: its price falls as 1/m, that of PAC-Bayes as 1/n.
- Every validation example is judged by its own draws of λ, so that the judgements are independent given the split. They
  are counted apart for the examples on which λ̂ itself is right and wrong: strata that the split and λ̂ fix before any
  draw is made. Their rates are near 0 and 1, where kl^-1 is tightest: half the margin of one list at the same m.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bounds.autodiff import differentiable, vmap_or_loop
from bounds.certificates import Stratum, coefficient_kl, coefficient_pac_bayes
from bounds.scores import check_scores
from bounds.types import Blocks, Inputs, Params, take
from diagnostics.settings import COEFFICIENT_SCALES, OWN_SCALE, UNIFORM_PRIORS
from diagnostics.subject import Subject
from diagnostics.work.pieces import Pieces
from diagnostics.workspace import Workspace
from merging.task import Task, described, labels_of
from merging.task_vectors import TaskVectors, coefficient_blocks, merged

OWN_PRIOR = "λ̂ itself"
CHUNKS = 4
"""Pieces in which each task's draws are cached and spread over processes."""
TOGETHER = 8
"""Draws whose merged weights are held at once: more leave the processor's cache."""
DRAWS_SHARE = 0.1
"""Share of a statement's δ that pays for the step from draws to their mean."""


@dataclass(frozen=True, kw_only=True)
class GibbsRow:
    """(10) for one prior: s, KL (nats), the mean error of m draws, what the draws and PAC-Bayes add, the total.

    All rows hold together: each has its own share ``delta`` of the report's δ. ``grid_size`` is the length G of the
    list that the prior and s stand in.
    """

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
    delta: float
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class PriorChoice:
    """The (prior, s) of least KL in one of the two lists, and the length of that list."""

    name: str
    prior: Tensor
    scale: float
    grid: int

    @staticmethod
    def best(priors: Mapping[str, Tensor], scales: Sequence[float], mean: Tensor) -> PriorChoice:
        """Choose by KL, then by the smaller s: no draws are spent on it, any choice within the list is paid for."""
        pairs = list(itertools.product(priors, scales))
        name, scale = min(pairs, key=lambda pair: (coefficient_kl(mean, priors[pair[0]], pair[1]), pair[1]))
        return PriorChoice(name, priors[name], scale, len(pairs))


def obstacle(workspace: Workspace, subject: Subject) -> str:
    """Why there is no statement (10) on a merge ("" if there is one)."""
    if subject.artifact.coefficients is None:
        return f"{subject.artifact.method} is not made of coefficients of the task vectors"
    if not _is_merge_of_coefficients(workspace, subject):
        return "the merged weights are not those that the artifact's coefficients make of the task vectors"
    return ""


def certify(workspace: Workspace, subject: Subject, *, unseen: bool) -> tuple[GibbsRow, ...]:
    """Return (10) with the best data-free prior and, if the split is ``unseen`` by the merge, with the prior at λ̂.

    Empty where there is an :func:`obstacle`. δ is shared by the rows and by the artifacts shown
    side by side. Status: certified.
    """
    artifact = subject.artifact
    if artifact.coefficients is None or obstacle(workspace, subject):
        return ()
    mean = artifact.coefficients.detach().double().cpu()
    free = {name: torch.full_like(mean, 1 / len(mean) if name == "1/T" else float(name)) for name in UNIFORM_PRIORS}
    choices = [PriorChoice.best(free, COEFFICIENT_SCALES, mean)]
    if unseen and not any(torch.equal(mean, prior) for prior in free.values()):
        choices.append(PriorChoice.best({OWN_PRIOR: mean}, (OWN_SCALE,), mean))
    delta = workspace.settings.delta / len(choices) / workspace.models_looked_at
    repeats = [*[1] * (len(choices) - 1), workspace.settings.gibbs_draws]
    return tuple(
        _row(choice, mean, judged_strata(workspace, subject, choice.scale, count), delta)
        for choice, count in zip(choices, repeats, strict=True)
    )


def _row(choice: PriorChoice, mean: Tensor, strata: Sequence[Stratum], delta: float) -> GibbsRow:
    n, own = sum(s.examples for s in strata), choice.name == OWN_PRIOR
    result = coefficient_pac_bayes(
        strata,
        n,
        mean,
        choice.prior,
        choice.scale,
        delta=(1 - DRAWS_SHARE) * delta,
        draws=None,
        delta_draws=DRAWS_SHARE * delta,
        grid_size=choice.grid,
    )
    rate, monte_carlo, pac_bayes = (term.estimate.value for term in result.terms)
    return GibbsRow(
        prior=choice.name,
        data_free=not own,
        scale=choice.scale,
        kl=coefficient_kl(mean, choice.prior, choice.scale),
        observed=rate,
        draws=sum(s.draws for s in strata),
        monte_carlo_margin=monte_carlo,
        pac_bayes_margin=pac_bayes,
        value=min(1.0, result.value),
        n=n,
        grid_size=choice.grid,
        delta=delta,
        assumptions=(
            *result.assumptions,
            *(("the merge did not use the validation split, so λ̂ is a prior for it",) if own else ()),
        ),
    )


def _is_merge_of_coefficients(workspace: Workspace, subject: Subject) -> bool:
    artifact = subject.artifact
    assert artifact.coefficients is not None
    again = merged(workspace.vectors, artifact.coefficients.to(workspace.device), artifact.blocks)
    theta = workspace.weights(subject)
    return all(torch.allclose(again[name], theta[name], rtol=1e-4, atol=1e-6) for name in theta)


def judged_strata(workspace: Workspace, subject: Subject, scale: float, repeats: int) -> list[Stratum]:
    """Judgements of ``repeats`` draws of λ for every validation example, where λ̂ is right and where it is wrong."""
    pieces = workspace.pieces(
        Pieces(
            "gibbs",
            (subject.key, scale, repeats),
            lambda piece: {"wrong": _judge(workspace, subject, scale, piece, repeats)},
            len(workspace.names) * CHUNKS,
        ),
        f"{subject.label}: draws of λ, s = {scale:g}",
    )
    drawn, at_mean = [], []
    teachers, merges = workspace.teachers(), workspace.merged(subject)
    for index, (teacher, merge) in enumerate(zip(teachers, merges, strict=True)):
        wrong = merge["validation"].argmax(dim=1) != teacher["validation_labels"]
        at_mean += [wrong[chunk::CHUNKS] for chunk in range(CHUNKS)]
        drawn += [piece["wrong"] for piece in pieces[index * CHUNKS : (index + 1) * CHUNKS]]
    judged, mean_is_wrong = torch.cat(drawn), torch.cat(at_mean)
    parts = [judged[mean_is_wrong == side] for side in (False, True)]
    return [Stratum(int(part.sum()), part.numel(), len(part)) for part in parts if len(part)]


def _judge(workspace: Workspace, subject: Subject, scale: float, piece: int, repeats: int) -> Tensor:
    """Whether independent draws of λ err [N, repeats] on every CHUNKS-th validation example of a task."""
    task, lam = workspace.suite.tasks[piece // CHUNKS], subject.artifact.coefficients
    sample = task.validation
    assert lam is not None
    labels = labels_of(task, "validation", "certificate (10)").cpu()
    lam = lam.detach()
    blocks = coefficient_blocks(workspace.vectors, lam, subject.artifact.blocks)
    generator, wrong = torch.Generator().manual_seed(_seed(workspace.settings.seed, scale, piece, repeats)), []
    examples = torch.arange(piece % CHUNKS, len(sample), CHUNKS)
    with torch.no_grad(), differentiable():
        for chosen in examples.repeat_interleave(repeats).split(TOGETHER) if len(examples) else ():
            noise = torch.randn(len(chosen), *lam.shape, generator=generator, dtype=lam.dtype)
            thetas = merged_draws(workspace.vectors, (lam.cpu() + scale * noise).to(workspace.device), blocks)
            scores = vmap_or_loop(partial(_one, task), thetas, take(sample.inputs, chosen.to(workspace.device)))
            check_scores(scores, len(chosen), len(task.class_names), described(task.name, "validation", "randomised"))
            wrong.append(scores.argmax(dim=1).cpu() != labels[chosen])
    return torch.cat(wrong).view(-1, repeats) if wrong else torch.zeros(0, repeats, dtype=torch.bool)


def _seed(*parts: float) -> int:
    """Return a seed of its own for every piece's draws. Its text must not change: the published draws rest on it."""
    return int(hashlib.sha256(json.dumps(["4", parts]).encode()).hexdigest()[:12], 16)


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
