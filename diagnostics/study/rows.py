"""Rows of the study: a rate (or mean), its one-sided 95 % limits, and whether it came out as it must."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import beta as beta_distribution

DELTA = 0.05
LEVEL = 0.05
NORMAL_QUANTILE = 1.6448536269514722

Kind = Literal["statement", "mutant"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    ``claim`` is the equation, ``variant`` "as stated" or what the mutant leaves out; ``rate`` is the
    violation rate (for e-values: the mean), ``lower`` and ``upper`` its one-sided 95 % limits, ``limit`` the
    delta (for e-values: 1) it is held against. A rate that was summed over all outcomes has 0 ``draws``, and is its
    own limits.
    """

    claim: str
    variant: str
    setting: str
    kind: Kind
    draws: int
    rate: float
    lower: float
    upper: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether a statement's lower limit stays within the limit, or a mutant's exceeds it (is caught)."""
        return (self.lower > self.limit) == (self.kind == "mutant")


def violation_row(
    claim: str, variant: str, setting: str, kind: Kind, violated: np.ndarray, delta: float = DELTA
) -> Row:
    """Return the row of a bound's violations [D] (booleans), with Clopper-Pearson limits."""
    draws, count = len(violated), int(violated.sum())
    lower, upper = rate_limits(count, draws)
    return Row(
        claim=claim,
        variant=variant,
        setting=setting,
        kind=kind,
        draws=draws,
        rate=count / draws,
        lower=lower,
        upper=upper,
        limit=delta,
    )


def exact_row(claim: str, variant: str, setting: str, kind: Kind, rate: float, delta: float = DELTA) -> Row:
    """Return the row of a violation rate that was summed over all outcomes."""
    return Row(
        claim=claim,
        variant=variant,
        setting=setting,
        kind=kind,
        draws=0,
        rate=rate,
        lower=rate,
        upper=rate,
        limit=delta,
    )


def rate_limits(count: int, draws: int) -> tuple[float, float]:
    """One-sided 95 % lower and upper limits of a binomial rate."""
    lower = 0.0 if count == 0 else float(beta_distribution.ppf(LEVEL, count, draws - count + 1))
    upper = 1.0 if count == draws else float(beta_distribution.ppf(1.0 - LEVEL, count + 1, draws - count))
    return lower, upper


def mean_row(claim: str, variant: str, setting: str, kind: Kind, values: np.ndarray) -> Row:
    """Return the row of e-values [D], whose mean must not exceed 1."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    margin = NORMAL_QUANTILE * error
    return Row(
        claim=claim,
        variant=variant,
        setting=setting,
        kind=kind,
        draws=len(values),
        rate=mean,
        lower=mean - margin,
        upper=mean + margin,
        limit=1.0,
    )


COLUMNS = ("claim", "variant", "setting", "kind", "draws", "rate", "lower", "upper", "limit", "passed")


def as_csv(rows: Sequence[Row]) -> str:
    """Return the table as comma-separated text with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_text(getattr(row, name)) for name in COLUMNS] for row in rows)
    return out.getvalue()


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
