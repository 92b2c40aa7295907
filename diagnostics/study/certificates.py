"""Coverage and power of the certificates (9) and (10), compared with exact tails where there are any."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import ndtr
from scipy.stats import binom

from bounds.certificates import Method as HeldOutMethod
from bounds.certificates import coefficient_pac_bayes, held_out
from diagnostics.study.rows import DELTA, Row, violation_row
from diagnostics.study.world import per_pair, sample_counts

MODELS = 20
CHEAP = 10
"""A draw of (9) is one number: so many more of them."""


def exact_miss_rate(error: float, size: int, method: HeldOutMethod) -> float:
    """Pr[(9) < error] for a fixed model, by enumeration of the number of errors."""
    counts = np.arange(size + 1)
    limits = np.array([held_out(int(k), size, DELTA, method).value for k in counts])
    return float(binom.pmf(counts, size, error)[limits < error].sum())


def held_out_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(9) for a fixed model, for the best of 20, and misused on its training sample."""
    size, error, draws = 200, 0.3, CHEAP * draws
    rows: list[Row] = []
    methods: tuple[HeldOutMethod, ...] = ("clopper-pearson", "kl")
    for method in methods:
        limits = _limits(size, method, 1)
        violated = limits[generator.binomial(size, error, draws)] < error
        tail = exact_miss_rate(error, size, method)
        setting = f"{method}, n={size}, e={error:g} (exact rate {tail:.4f})"
        rows.append(violation_row("(9)", "as stated", setting, "statement", violated))
    best = generator.binomial(size, error, (draws, MODELS)).min(1)
    setting = f"best of {MODELS}, n={size}, e={error:g}"
    paid = _limits(size, "clopper-pearson", MODELS)[best] < error
    rows.append(violation_row("(9)", "as stated", f"{setting}, delta/{MODELS}", "statement", paid))
    unpaid = _limits(size, "clopper-pearson", 1)[best] < error
    rows.append(violation_row("(9)", "no union", setting, "mutant", unpaid))
    size = 500
    plus, minus = sample_counts(generator, size, np.full(MODELS, 0.5), draws)
    training_errors = np.minimum(plus, minus).sum(-1)  # majority label per cell; every classifier errs at 1/2
    setting = f"majority label of {MODELS} cells, even labels, n={size}"
    misused = _limits(size, "clopper-pearson", 1)[training_errors] < 0.5
    rows.append(violation_row("(9)", "on the training sample", setting, "mutant", misused))
    fresh = _limits(size, "clopper-pearson", 1)[generator.binomial(size, 0.5, draws)] < 0.5
    rows.append(violation_row("(9)", "as stated", f"{setting}, fresh labels", "statement", fresh))
    return rows


def _limits(size: int, method: HeldOutMethod, models: int) -> np.ndarray:
    return np.array([held_out(k, size, DELTA, method, models).value for k in range(size + 1)])


def gibbs_mean(plus: np.ndarray, minus: np.ndarray, strength: float) -> np.ndarray:
    """Minimise n e^(Q) + strength KL over the means: sign(nu_k + u) predicts cell k, KL = sum nu^2/2."""
    nu = np.arange(-5.0, 5.0 + 1e-9, 0.005)
    wrong, right, penalty = ndtr(-nu), ndtr(nu), strength * nu**2 / 2.0

    def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return nu[(a[:, None] * wrong + b[:, None] * right + penalty).argmin(1)]

    return per_pair(solve, plus, minus)


def coefficient_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(10) with the posterior mean exact, and with few draws from the posterior."""
    cells = 4000
    plus, minus = sample_counts(generator, cells, np.full(cells, 0.5), draws)
    nu = gibbs_mean(plus, minus, 1.0)
    empirical = (plus * ndtr(-nu) + minus * ndtr(nu)).sum(-1) / cells
    setting = f"0-1 one-hot, even labels, K=n={cells}, c=1, exact Gibbs error"
    rows: list[Row] = []
    for variant, scale in (("as stated", 1.0), ("KL/2", math.sqrt(2.0))):
        values = [_certificate(e, cells, m, scale, None) for e, m in zip(empirical, nu, strict=True)]
        kind = "statement" if variant == "as stated" else "mutant"
        rows.append(violation_row("(10)", variant, setting, kind, np.array(values) < 0.5))
    return [*rows, *_few_draws(generator, draws)]


def _few_draws(generator: np.random.Generator, draws: int) -> list[Row]:
    """Four cells, labels 90/10, five posterior draws: their noise must be paid for."""
    cells, size, looks, positive = 4, 2000, 5, np.full(4, 0.9)
    plus, minus = sample_counts(generator, size, positive, draws)
    nu = gibbs_mean(plus, minus, 200.0)
    truth = (positive * ndtr(-nu) + (1.0 - positive) * ndtr(nu)).mean(-1)
    says_plus = generator.normal(size=(draws, looks, cells)) + nu[:, None] > 0.0
    errors = np.where(says_plus, minus[:, None], plus[:, None]).sum(-1).mean(-1) / size
    setting = f"0-1 one-hot, labels 90%, K={cells}, n={size}, c=200, m={looks}"
    rows: list[Row] = []
    for variant, seen in (("as stated", looks), ("draws taken for the mean", None)):
        values = [_certificate(e, size, m, 1.0, seen) for e, m in zip(errors, nu, strict=True)]
        kind = "mutant" if seen is None else "statement"
        rows.append(violation_row("(10)", variant, setting, kind, np.array(values) < truth))
    return rows


def _certificate(error: float, size: int, mean: np.ndarray, scale: float, looks: int | None) -> float:
    """(10) at delta = 0.05 in all (halved between its two steps when draws are used)."""
    coefficients = torch.from_numpy(mean)
    delta = DELTA if looks is None else DELTA / 2.0
    prior = torch.zeros_like(coefficients)
    return coefficient_pac_bayes(float(error), size, coefficients, prior, scale, delta=delta, draws=looks).value
