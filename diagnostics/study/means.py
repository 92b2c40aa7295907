"""Coverage of the certificates (13)-(16): counts of unlike examples, weighted means, a draw of the model for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.special import betaincinv

from bounds.certificates import BoundedSample, Constants, choose_constants, held_out, weighted_mean
from diagnostics.study.rows import DELTA, Row, exact_row, violation_row

MANY = 10
"""A draw of a count is one number: so many more of them."""


def count_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(13) on classes with fixed counts, against plain Clopper-Pearson where that fails; (16) with its mutant."""
    return [*_pair(), *_unlike(generator, MANY * draws), *_randomised(generator, MANY * draws)]


def _pair() -> list[Row]:
    """Section 8's counterexample, by enumeration: of two examples the first is wrong for sure."""
    rates = (1.0, 0.9499)
    setting, truth = f"two examples, rates {rates[0]:g} and {rates[1]:g}, exact", sum(rates) / 2
    law = {1: 1.0 - rates[1], 2: rates[1]}  # number of errors -> probability
    limits: dict[str, Callable[[int], float]] = {
        "as stated": lambda k: held_out(k, 2, DELTA).value,
        "without the maximum": lambda k: _plain(k, 2, DELTA),
    }
    return [
        exact_row(
            "(13)",
            variant,
            setting,
            "statement" if variant == "as stated" else "mutant",
            sum((p for k, p in law.items() if limit(k) < truth), 0.0),
        )
        for variant, limit in limits.items()
    ]


def _plain(errors: int, n: int, delta: float) -> float:
    """Clopper and Pearson's limit, for i.i.d. examples."""
    return 1.0 if errors == n else float(betaincinv(errors + 1, n - errors, 1.0 - delta))


def _unlike(generator: np.random.Generator, draws: int) -> list[Row]:
    n, delta = 10, 0.25
    sure = 1.0 - n * (1.0 - (1.0 - delta) ** (1.0 / n)) + 1e-4  # one example that may be right; nine that never are
    errors = n - 1 + generator.binomial(1, sure, draws)
    truth, setting = (n - 1 + sure) / n, f"n={n}: 9 sure errors, one of rate {sure:.3f}; delta={delta:g}"
    stated = np.array([held_out(k, n, delta).value for k in range(n + 1)])
    plain = np.array([_plain(k, n, delta) for k in range(n + 1)])
    rows = [
        violation_row("(13)", "as stated", setting, "statement", stated[errors] < truth, delta),
        violation_row("(13)", "plain Clopper-Pearson", setting, "mutant", plain[errors] < truth, delta),
    ]
    n, table = 100, np.array([held_out(k, 100, DELTA).value for k in range(101)])
    errors = generator.binomial(n // 2, 0.02, draws) + generator.binomial(n // 2, 0.6, draws)
    rows.append(
        violation_row("(13)", "as stated", "two classes of 50, rates .02 and .6", "statement", table[errors] < 0.31)
    )
    return rows


def _randomised(generator: np.random.Generator, draws: int) -> list[Row]:
    """(16): models that err at .1 or .5."""
    n, table = 100, np.array([held_out(k, 100, DELTA).value for k in range(101)])
    setting = f"model errs at .1 or .5 with probability 1/2, n={n}"
    own = generator.binomial(n, 0.3, draws)
    common = generator.binomial(n, generator.choice([0.1, 0.5], draws))
    return [
        violation_row("(16)", "as stated", setting, "statement", table[own] < 0.3),
        violation_row("(16)", "one common draw", setting, "mutant", table[common] < 0.3),
    ]


def mean_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(14) and (15): weights, differences, three limits together, unlabelled inputs; each with its mutant."""
    return [
        *_weighted(generator, draws),
        *_together(generator, draws),
        *_differences(generator, draws),
        *_unlabelled(generator, draws),
    ]


def _weighted(generator: np.random.Generator, draws: int) -> list[Row]:
    """Two tasks of unlike size and error; n_t/n in the place of alpha is another mean."""
    sizes, rates, alpha = (80, 20), (0.1, 0.4), (0.5, 0.5)
    constants, truth = Constants(0.45, (-0.15, 0.15)), 0.25
    setting, violated = "T=2, n=(80, 20), rates .1 and .4, alpha uniform", {"stated": [], "pooled": []}
    pairs = zip(*(generator.binomial(n, p, draws) for n, p in zip(sizes, rates, strict=True)), strict=True)
    for pair in pairs:
        samples = [_counted(int(k), n) for k, n in zip(pair, sizes, strict=True)]
        for name, weights in (("stated", alpha), ("pooled", (0.8, 0.2))):
            violated[name].append(weighted_mean(samples, weights, DELTA, constants).value < truth)
    return [
        violation_row("(14)", "as stated", setting, "statement", np.array(violated["stated"])),
        violation_row("(14)", "n_t/n for alpha", setting, "mutant", np.array(violated["pooled"])),
    ]


def _together(generator: np.random.Generator, draws: int) -> list[Row]:
    """Three limits at once, with a rate at which the e-value is 1/delta or 0: nothing is left to spare."""
    n, tasks = 20, 3
    rate = 1.0 - (0.999 * DELTA) ** (1.0 / n)
    constants = Constants(0.9999 / (1.0 - rate), (0.0,))
    errors = generator.binomial(n, rate, (MANY * draws, tasks))
    setting, rows = f"three limits shown together, n={n}, rate {rate:.3f}", []
    for variant, share in (("as stated", DELTA / tasks), ("delta not divided", DELTA)):
        limits = [weighted_mean([_counted(k, n)], (1.0,), share, constants).value for k in range(n + 1)]
        missed = (np.array(limits)[errors] < rate).any(1)
        rows.append(violation_row("(14)", variant, setting, "statement" if share < DELTA else "mutant", missed))
    return rows


def _differences(generator: np.random.Generator, draws: int) -> list[Row]:
    """Merge against teacher on the same examples; two upper limits say nothing about their difference."""
    n, apart, law = 60, 0.15, (0.05, 0.75, 0.2)  # teacher alone wrong, both alike, merge alone wrong
    constants, single = Constants(0.5, (0.0,)), Constants(0.6, (0.0,))
    violated, setting = [], f"merge minus teacher, n={n}, mean +{apart:g}"
    for minus, same, plus in generator.multinomial(n, law, draws):
        values = torch.tensor([-1.0] * minus + [0.0] * same + [1.0] * plus, dtype=torch.float64)
        stated = weighted_mean([BoundedSample(values=values, lower=-1.0, upper=1.0)], (1.0,), DELTA, constants).value
        merge, teacher = (weighted_mean([_counted(int(k), n)], (1.0,), DELTA, single).value for k in (plus, minus))
        violated.append((stated < apart, merge - teacher < apart))
    first, second = np.array(violated).T
    return [
        violation_row("(14)", "as stated", setting, "statement", first),
        violation_row("(14)", "difference of two limits", setting, "mutant", second),
    ]


def _unlabelled(generator: np.random.Generator, draws: int) -> list[Row]:
    """Two tasks with g on other inputs; and X = g with few of them, where their mean is no constant."""
    sizes, others, rates, alpha = (50, 30), (200, 100), (0.2, 0.5), (0.4, 0.6)
    pilots = [_guessed(generator, 300, 300, rate) for rate in rates]
    samples = [_guessed(generator, n, m, rate) for n, m, rate in zip(sizes, others, rates, strict=True)]
    constants, truth = choose_constants(pilots, samples, alpha, DELTA), 0.38
    violated = []
    for _ in range(draws):
        samples = [_guessed(generator, n, m, rate) for n, m, rate in zip(sizes, others, rates, strict=True)]
        violated.append(weighted_mean(samples, alpha, DELTA, constants).value < truth)
    setting = f"T=2, n=(50, 30), N=(200, 100), l={constants.slope:.2f}"
    return [
        violation_row("(15)", "as stated", setting, "statement", np.array(violated)),
        *_few_inputs(generator, draws),
    ]


def _few_inputs(generator: np.random.Generator, draws: int) -> list[Row]:
    """X = g: what is not known is the mean of g over few unlabelled inputs, and nothing else."""
    n, others, rate = 400, 20, 0.3
    constants, certain = Constants(0.04, (0.0,), 1.0, (rate,)), Constants(0.98, (0.0,))
    setting, violated = f"X = g, n={n}, N={others}, l=1", []
    for _ in range(draws):
        drawn = _guessed(generator, n, others, rate)
        assert drawn.predicted is not None
        assert drawn.unlabelled is not None
        stated = weighted_mean([replace(drawn, values=drawn.predicted)], (1.0,), DELTA, constants).value
        mean = float(drawn.unlabelled.mean())  # X - g + this mean, as if it were the truth
        taken = BoundedSample(values=torch.full((n,), mean), lower=mean - 1.0, upper=mean + 1.0)
        violated.append((stated < rate, weighted_mean([taken], (1.0,), DELTA, certain).value < rate))
    first, second = np.array(violated).T
    return [
        violation_row("(15)", "as stated", setting, "statement", first),
        violation_row("(15)", "mean of g taken as exact", setting, "mutant", second),
    ]


def _counted(errors: int, n: int) -> BoundedSample:
    """Return n losses of which so many are 1."""
    return BoundedSample(values=(torch.arange(n) < errors).double())


def _guessed(generator: np.random.Generator, n: int, others: int, rate: float) -> BoundedSample:
    """Losses that are 1 with probability g, and g on other inputs; the mean of g is ``rate``."""
    g = torch.from_numpy(generator.beta(2.0 * rate, 2.0 * (1.0 - rate), n + others))
    values = torch.from_numpy(generator.random(n)) < g[:n]
    return BoundedSample(values=values.double(), predicted=g[:n], unlabelled=g[n:])
