"""Coverage and power of (2) and (2a), assembled by the package from exact statistics.

Settings are those of docs/theory.md section 10: in easier ones mutants cannot be told from statements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bounds.pac_bayes import flatness_bound, lemma1
from bounds.types import Bound, Estimate
from diagnostics.study.rows import DELTA, Row, mean_row, violation_row
from diagnostics.study.world import (
    Draws,
    OneHotLogistic,
    adversarial_mean,
    regularised_mean,
    sample_counts,
)

CHUNK = 250
Chunk = Callable[[np.random.Generator, int], np.ndarray]


def in_chunks(experiment: Chunk, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Run an experiment a few hundred draws at a time (memory) and join its columns."""
    sizes = [CHUNK] * (draws // CHUNK) + ([draws % CHUNK] if draws % CHUNK else [])
    return np.concatenate([experiment(generator, size) for size in sizes])


def term(bound: Bound, name: str) -> float:
    """Value of the term whose name contains ``name``."""
    return sum(t.estimate.value for t in bound.terms if name in t.name)


@dataclass(frozen=True, kw_only=True)
class OneTask:
    """Even labels; the posterior minimises L^ + strength KL/(eta n), or is the adversary (strength None)."""

    scale: float
    eta: float
    cells: int
    size: int
    strength: float | None
    adversary_factor: float = 1.0

    @property
    def text(self) -> str:
        """The setting in words."""
        how = f"c={self.strength:g}" if self.strength is not None else f"adversary, KL x {self.adversary_factor:g}"
        return f"s={self.scale:g}, eta={self.eta:g}, n={self.size}, d={self.cells}, {how}"

    def statistics(self, generator: np.random.Generator, draws: int) -> Draws:
        """Posterior statistics on fresh samples."""
        world, positive = OneHotLogistic(self.scale), np.full(self.cells, 0.5)
        plus, minus = sample_counts(generator, self.size, positive, draws)
        if self.strength is None:
            factor = self.adversary_factor
            nu = adversarial_mean(world, plus, minus, 0.5, self.eta, divergence_factor=factor)
        else:
            nu = regularised_mean(world, plus, minus, self.strength / self.eta)
        return world.draws(nu, plus, minus, positive)

    def bounds(self, draws: Draws) -> list[Bound]:
        """(2) for every draw, with the ratio for C."""
        columns = (draws.training_risk, draws.divergence, draws.qsb, draws.flatness)
        return [
            flatness_bound(Estimate(risk), kl, self.size, self.eta, Estimate(qsb), Estimate(flatness), delta=DELTA)
            for risk, kl, qsb, flatness in np.stack(columns, 1).tolist()
        ]


def divergence_part(kl: float, price: float) -> float:
    """Share of a complexity term that is due to the KL."""
    return kl / (kl + price)


def flatness_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(2) as stated and without its parts."""
    shapes: list[tuple[OneTask, tuple[str, ...]]] = [
        (OneTask(scale=10, eta=0.03, cells=2000, size=2000, strength=1.0), ("no Poincaré term",)),
        (OneTask(scale=10, eta=0.05, cells=2000, size=2000, strength=1.0), ("no Poincaré term",)),
        (OneTask(scale=10, eta=0.03, cells=2000, size=2000, strength=0.05), ("KL = 0", "no complexity")),
        (OneTask(scale=3, eta=0.1, cells=2000, size=2000, strength=None, adversary_factor=0.25), ("KL/4",)),
        (OneTask(scale=3, eta=0.1, cells=2000, size=2000, strength=None), ()),
    ]
    rows: list[Row] = []
    for setting, mutants in shapes:
        table = in_chunks(lambda g, k, s=setting: _flatness_columns(s, g, k), generator, draws)
        for variant in ("as stated", *mutants):
            violated = table[:, 0] > table[:, FLATNESS_VARIANTS.index(variant) + 1]
            kind = "statement" if variant == "as stated" else "mutant"
            rows.append(violation_row("(2)", variant, setting.text, kind, violated))
    return rows


FLATNESS_VARIANTS = ("as stated", "no Poincaré term", "KL = 0", "no complexity", "KL/4")


def _flatness_columns(setting: OneTask, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Return the true risk, then the bound in every variant: [D, 6]."""
    statistics = setting.statistics(generator, draws)
    rows = []
    for risk, kl, bound in zip(statistics.risk, statistics.divergence, setting.bounds(statistics), strict=True):
        complexity = term(bound, "complexity")
        by_kl = complexity * divergence_part(kl, -math.log(DELTA))
        value = bound.value
        cuts = (0.0, term(bound, "Poincaré"), by_kl, complexity, 0.75 * by_kl)
        rows.append([risk, *(value - cut for cut in cuts)])
    return np.array(rows)


def evalue_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """E exp(eta n (L - L^ - (eta/2) E E_Q l^2) - KL) <= 1, the posterior chosen to make it large."""
    rows: list[Row] = []
    for variant, factor, moment in (
        ("as stated", 1.0, 0.5),
        ("KL/4", 0.25, 0.5),
        ("no second moment", 1.0, 0.0),
    ):
        world, eta, size, positive = OneHotLogistic(3.0), 0.1, 200, np.full(200, 0.5)
        plus, minus = sample_counts(generator, size, positive, draws)
        nu = adversarial_mean(world, plus, minus, 0.5, eta, divergence_factor=factor, moment_factor=moment, split=False)
        s = world.draws(nu, plus, minus, positive)
        columns = np.stack((s.training_risk, factor * s.divergence, 2 * moment * s.second_moment), 1)
        bounds = [lemma1(Estimate(r), kl, size, eta, Estimate(m), delta=DELTA).value for r, kl, m in columns.tolist()]
        # (2a) says the exponent without ln(1/delta): eta n (L - bound) + ln(1/delta).
        values = np.exp(eta * size * (s.risk - np.array(bounds)) - math.log(DELTA))
        kind = "statement" if variant == "as stated" else "mutant"
        setting = f"s=3, eta={eta:g}, n={size}, d=200, adversary: mean of the e-value"
        rows.append(mean_row("(2a)", variant, setting, kind, values))
    return rows
