"""What to try: other merges that were measured and are better beyond the error of measuring so many."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from bounds.types import Estimate
from diagnostics.diagnosis.changes import Trial
from merging.editing import Edit

MOST_LINES = 5
MEMORY = "in memory"
"""The file of a merge that has none."""


@dataclass(frozen=True)
class Candidate:
    """Another merge: what to do, the number that suggests it, what was tried, what it changed."""

    text: str
    reason: str
    trial: Trial
    change: Estimate


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A candidate that is better on the validation split; ``change`` is its α-weighted accuracy minus the merge's.

    Paired, in 0..1. ``looked_at`` models were compared on these labels, the merge among them: a certificate of the new
    merge on them pays for as many. ``suite`` finds the suite ("" where it was made in memory).
    """

    text: str
    reason: str
    trial: Trial
    change: Estimate
    looked_at: int
    suite: str

    def command(self, file: str) -> str:
        """Return the command that makes the better merge, given the merge's file; Python where there is no file."""
        trial, edit = self.trial, self.trial.edit
        if trial.method:
            given = [f"{name}={value!r}" for name, value in trial.settings.items()]
            if not self.suite:
                return f"from merging import merge; better = merge({', '.join([repr(trial.method), 'suite', *given])})"
            options = [word for k, v in trial.settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
            words = ["merge", "--method", trial.method, "--suite", self.suite, *options]
        elif file == MEMORY or not self.suite:
            return f"from merging.editing import Edit, edited; better = edited(artifact, suite, {_as_python(edit)})"
        else:
            words = ["edit", file, *_options(edit)]
        return shlex.join(["mergebound", *words, "--candidates", str(self.looked_at), "--out", "better.pt"])


def _options(edit: Edit) -> list[str]:
    scale = [] if edit.scale == 1 else ["--scale", f"{edit.scale:g}"]
    without = [word for name in edit.without for word in ("--without", name)]
    return [*without, *scale, *(word for pattern in edit.base for word in ("--base", pattern))]


def _as_python(edit: Edit) -> str:
    fields = {"without": edit.without, "scale": edit.scale, "base": edit.base}
    default = Edit()
    return f"Edit({', '.join(f'{k}={v!r}' for k, v in fields.items() if v != getattr(default, k))})"


def worth_trying(candidates: Sequence[Candidate], level: float, suite: str) -> tuple[Advice, ...]:
    """Return the candidates that improve on the merge, best first, at most MOST_LINES.

    Kept are those whose lower limit, change - z · s.e. with z the normal quantile of 1 - level/K for K candidates
    (Bonferroni: all limits hold together), is above 0. Estimated.

    Args:
        candidates: all K that were measured, on examples that did not suggest them.
        level: probability that any line does not improve.
        suite: what the suite is found by.
    """
    if not candidates:
        return ()
    z = NormalDist().inv_cdf(1 - level / len(candidates))
    better = [c for c in candidates if c.change.value - z * c.change.stderr > 0]
    return tuple(
        Advice(
            text=c.text,
            reason=c.reason,
            trial=c.trial,
            change=c.change,
            looked_at=len(candidates) + 1,
            suite=suite,
        )
        for c in sorted(better, key=lambda c: -c.change.value)[:MOST_LINES]
    )
