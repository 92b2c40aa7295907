"""The certificate of a weighted mean, from above or from below (docs/theory.md (14), (15))."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bounds.certificates.constants import data_free_constants
from bounds.certificates.evalue import (
    SIDES,
    BoundedSample,
    Constants,
    Side,
    normalised,
    problem_of,
    sizes_of,
    upper_limit,
)
from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_delta

EXAMPLES = "examples are independent, and unused in training, in choosing the model and in choosing the constants"
INPUTS = "the unlabelled inputs are distributed like the labelled ones, independent of them, and unused for the model"


def weighted_mean(
    samples: Sequence[BoundedSample],
    alpha: Sequence[float] | Tensor,
    delta: float,
    constants: Constants | None = None,
    *,
    side: Side = "upper",
    models_looked_at: int = 1,
) -> Bound:
    """Certify sum_t alpha_t E X_t, from above or from below: (14), and (15) where there are unlabelled inputs.

    Args:
        samples: per task; the sizes are fixed in advance. The tasks' examples are independent of each other.
        alpha: weights [T] on the simplex.
        delta: failure probability of this one limit. Several limits that shall hold together share it.
        constants: chosen without these samples (:func:`choose_constants`); None: those that need no data.
        side: "upper" or "lower".
        models_looked_at: K, a list of models fixed in advance of which this is one: each pays delta/K.

    Returns:
        Bound whose value is the limit, sign kept: observed mean + rectifier (where g is used) + margin, certified. With
        side "lower" the margin is negative and the value a lower limit. The limit is solved for to 1e-9 of the range,
        and rounded outward.

    Raises:
        InputError: weights off the simplex, delta outside (0, 1), K < 1, unknown side, constants that do not fit the
            samples (other number of tasks, a slope without unlabelled inputs, a negative factor).

    Source: docs/theory.md (14), (15).
    """
    if side not in SIDES:
        refuse("side", expected=SIDES, got=side, cure="choose one of these")
    weights = normalised(alpha, len(samples))
    paid = check_delta(delta) / check_count(models_looked_at, "models looked at")
    chosen = constants or data_free_constants(samples, weights, paid)
    sign = 1.0 if side == "upper" else -1.0
    turned, bet = (samples, chosen) if side == "upper" else ([s.negated for s in samples], chosen.negated)
    limit = sign * upper_limit(problem_of(turned, weights, bet, sizes_of(turned)), paid)
    observed = sum(w * float(s.values.mean()) for s, w in zip(samples, weights, strict=True))
    rectifier = -chosen.slope * sum(w * _surplus(s) for s, w in zip(samples, weights, strict=True))
    n = sum(len(s.values) for s, w in zip(samples, weights, strict=True) if w)
    note = f"nu = {chosen.rate:.4g}, l = {chosen.slope:.4g}, {models_looked_at} model(s) looked at, each at {paid:.3g}"
    return Bound(
        name=f"weighted mean, {'at most' if side == 'upper' else 'at least'}",
        reading="certificate",
        terms=_terms(observed, rectifier, limit, n, note, with_inputs=chosen.slope > 0.0),
        delta=delta,
        assumptions=(EXAMPLES, *((INPUTS,) if chosen.slope else ())),
        trivial_risk=sum(w * s.upper for s, w in zip(samples, weights, strict=True)),
    )


def _terms(
    observed: float, rectifier: float, limit: float, n: int, note: str, *, with_inputs: bool
) -> tuple[Term, ...]:
    equation = "(15)" if with_inputs else "(14)"
    seen = Term(symbol="Σα_t X̄_t", name="observed mean", equation=equation, estimate=Estimate(observed, 0.0, n))
    margin = Term(
        symbol="margin",
        name="what certainty costs",
        equation=equation,
        estimate=Estimate(limit - observed - rectifier, 0.0, n, "certified"),
        note=note,
    )
    if not with_inputs:
        return seen, margin
    name = "rectifier from unlabelled inputs"
    return (
        seen,
        Term(symbol="l Σα_t(g′_t − g_t)", name=name, equation=equation, estimate=Estimate(rectifier, 0.0, n)),
        margin,
    )


def _surplus(sample: BoundedSample) -> float:
    """Mean of g on the labelled inputs minus that on the others."""
    if sample.predicted is None or sample.unlabelled is None:
        return 0.0
    return float(sample.predicted.mean() - sample.unlabelled.mean())
