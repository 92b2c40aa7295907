"""Coverage and power of (4) and (5), assembled by the package from exact statistics.

Settings are those of docs/theory.md section 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bounds.heterogeneity import CrossRisk
from bounds.theorems import (
    AnchorStatistics,
    Experts,
    MergedModel,
    PosteriorStatistics,
    Weights,
    theorem1,
    theorem2,
)
from bounds.theorems.terms import COMPLEXITY, GAIN, GAP, HETEROGENEITY
from bounds.types import Bound, Estimate
from diagnostics.study.rows import DELTA, Row, violation_row
from diagnostics.study.single import divergence_part, in_chunks, term
from diagnostics.study.world import Draws, OneHotLogistic, regularised_mean, sample_counts


@dataclass(frozen=True, kw_only=True)
class ManyTasks:
    """Three tasks: label probabilities 1 - p or p per cell, flipped in tasks 2, 3 at rate ``flip``."""

    scale: float
    eta: float
    cells: int
    size: int
    strength: float
    flip: float
    label: float
    beta: tuple[float, ...]
    merge: str = ""
    tasks: int = 3

    @property
    def text(self) -> str:
        """The setting in words."""
        merge = f", theta_m = {self.merge}" if self.merge else ""
        beta = ", ".join(f"{b:.3g}" for b in self.beta)
        return (
            f"T=3, s={self.scale:g}, eta={self.eta:g}, n={self.size}, d={self.cells}, c={self.strength:g}, "
            f"flip={self.flip:g}, labels {self.label:.0%}, beta=({beta}){merge}"
        )

    def population(self) -> np.ndarray:
        """Label probabilities [T, cells], the same for all draws."""
        generator = np.random.default_rng(0)
        first = generator.choice([1.0 - self.label, self.label], size=self.cells)
        flips = generator.random((self.tasks - 1, self.cells)) < self.flip
        return np.stack([first, *np.where(flips, 1.0 - first, first)])

    def merged(self, nu: np.ndarray) -> np.ndarray:
        """Return the merged model [D, cells] from the means [T, D, cells]; theta_0 = 0."""
        mean = np.einsum("t,tdk->dk", np.array(self.beta), nu)
        return {"theta_1": nu[0], "3 tau_1": 3.0 * nu[0], "-tau_1": -nu[0], "1.3 theta_beta": 1.3 * mean}[self.merge]


MERGE_VARIANTS = (
    "as stated",
    "no H_Q",
    "no consensus gap",
    "Bregman gain twice",
    "KL = 0",
    "no complexity",
)


def theorem_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(4) and (5) as stated and without their parts."""
    even, first = (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, 0.0)
    moved = ("no H_Q", "no consensus gap", "Bregman gain twice")
    near = ManyTasks(scale=3, eta=0.1, cells=20, size=20000, strength=1.0, flip=0.3, label=0.9, beta=even)
    far = replace(near, scale=0.3, eta=0.05, flip=0.5, beta=first, merge="theta_1")
    shapes: list[tuple[ManyTasks, tuple[str, ...]]] = [
        (near, ("no H_Q",)),
        (far, ("no H_Q",)),
        (replace(far, merge="3 tau_1"), moved[:2]),
        (replace(far, merge="-tau_1"), moved),
        (replace(near, merge="1.3 theta_beta"), ()),
        (replace(far, cells=2000, size=5000, strength=0.002, label=0.5), ("KL = 0", "no complexity")),
    ]
    rows: list[Row] = []
    for setting, mutants in shapes:
        table = in_chunks(lambda g, k, s=setting: _theorem_columns(s, g, k), generator, draws)
        for variant in ("as stated", *mutants):
            violated = table[:, 0] > table[:, MERGE_VARIANTS.index(variant) + 1]
            kind = "statement" if variant == "as stated" else "mutant"
            rows.append(violation_row("(5)" if setting.merge else "(4)", variant, setting.text, kind, violated))
    return rows


def _theorem_columns(setting: ManyTasks, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Return the true risk, then the bound in every variant: [D, 1 + variants]."""
    world, labels = OneHotLogistic(setting.scale), setting.population()
    counts = [sample_counts(generator, setting.size, p, draws) for p in labels]
    nu = np.stack([regularised_mean(world, *c, setting.strength / setting.eta) for c in counts])
    tasks = [world.draws(m, *c, p) for m, c, p in zip(nu, counts, labels, strict=True)]
    risks = np.stack([np.stack([world.risk(m, p) for m in nu], -1) for p in labels], 1)  # [D, T, T]
    alpha, beta = np.full(len(labels), 1.0 / len(labels)), np.array(setting.beta)
    if setting.merge:
        merged = setting.merged(nu)
        truth, bounds = _single_model(setting, world, labels, counts, nu, merged, tasks, risks)
    else:
        truth = np.einsum("i,dij,j->d", alpha, risks, beta)
        bounds = [_mixture(setting, tasks, risks[d], d) for d in range(draws)]
    price = math.log(len(labels) / DELTA)
    rows = []
    for d, bound in enumerate(bounds):
        by_kl = sum(
            b * e.value * divergence_part(task.divergence[d], price)
            for b, e, task in zip(beta, per_task(bound, COMPLEXITY.name), tasks, strict=True)
        )
        parts = (
            0.0,
            term(bound, HETEROGENEITY.name),
            term(bound, GAP.name),
            -term(bound, GAIN.name),
            by_kl,
            term(bound, COMPLEXITY.name),
        )
        rows.append([truth[d], *(bound.value - part for part in parts)])
    return np.array(rows)


def per_task(bound: Bound, name: str) -> Sequence[Estimate]:
    """Per-expert values of the term called ``name``."""
    return next(t.per_task for t in bound.terms if t.name == name)


def _cross_risk(risk: np.ndarray) -> CrossRisk:
    tasks = len(risk)
    exact = torch.zeros(tasks, tasks, tasks, dtype=torch.float64)
    return CrossRisk(torch.from_numpy(risk), exact, (2,) * tasks)


def _mixture(setting: ManyTasks, tasks: Sequence[Draws], risk: np.ndarray, d: int) -> Bound:
    experts = [
        PosteriorStatistics(
            posterior_risk=Estimate(float(t.training_risk[d])),
            n=setting.size,
            kl=float(t.divergence[d]),
            flatness=Estimate(float(t.flatness[d])),
            eta=setting.eta,
            qsb=Estimate(float(t.qsb[d])),
        )
        for t in tasks
    ]
    alpha = [1.0 / len(tasks)] * len(tasks)
    return theorem1(Experts(experts, _cross_risk(risk)), Weights(alpha, setting.beta), delta=DELTA)


def _single_model(
    setting: ManyTasks,
    world: OneHotLogistic,
    labels: np.ndarray,
    counts: Sequence[tuple[np.ndarray, np.ndarray]],
    nu: np.ndarray,
    merged: np.ndarray,
    tasks: Sequence[Draws],
    risks: np.ndarray,
) -> tuple[np.ndarray, list[Bound]]:
    """Return the true risk of the merged model, and (5) for every draw."""
    beta, mean_labels = np.array(setting.beta), labels.mean(0)  # alpha is even, cells are shared
    gradient = world.point_gradient(merged, mean_labels)
    gap = (gradient * (merged - np.einsum("t,tdk->dk", beta, nu))).sum(-1)
    gain = np.einsum("t,td->d", beta, np.stack([world.bregman_gain(merged, m) for m in nu]))
    own = [world.point_training_risk(m, *c) for m, c in zip(nu, counts, strict=True)]
    alpha = [1.0 / len(tasks)] * len(tasks)
    bounds = []
    for d in range(len(merged)):
        anchors = [
            AnchorStatistics(
                own_risk=Estimate(float(own[j][d])),
                n=setting.size,
                displacement_sq=(2.0 * float(t.divergence[d]),),
                kernel=(Estimate(world.kernel_trace),),
                gradient=(Estimate(float(t.flatness[d])),),
                sigma=(1.0,),
                eta=setting.eta,
                qsb=Estimate(float(t.qsb[d])),
            )
            for j, t in enumerate(tasks)
        ]
        bounds.append(
            theorem2(
                Experts(anchors, _cross_risk(risks[d])),
                MergedModel(Estimate(float(gap[d])), Estimate(float(max(gain[d], 0.0)))),
                Weights(alpha, setting.beta),
                delta=DELTA,
            )
        )
    return world.point_risk(merged, mean_labels), bounds
