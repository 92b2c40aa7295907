"""Theorem 3: what a student owes to its teachers, and the error of its argmax (docs/theory.md section 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from bounds.distillation import Ladder
from bounds.theorems.terms import DISAGREEMENT, DISTILLATION, TEACHERS_ERROR, TEACHERS_RISK
from bounds.types import Bound, Estimate, refuse, weighted_sum
from bounds.validation import check_estimate

Rungs = Literal["total_variation", "minimum", "pinsker", "bretagnolle_huber"]


def theorem3(
    ladder: Ladder,
    teacher_risk: Sequence[Estimate],
    bayes_risk: Sequence[Estimate] | None = None,
    *,
    rung: Rungs = "total_variation",
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound the student's (excess) risk by the teachers' and what imitation leaves: (8).

    R_alpha(q) - R*_alpha <= sum_t alpha_t [R_t(p_t) - R*_t] + rung.

    Args:
        ladder: from ``bounds.distillation.ladder`` (alpha and the cost bound M are in it).
        teacher_risk: R_t(p_t) = E sum_k p_t(k|x) c(k, y) per task, in [0, M].
        bayes_risk: R*_t per task; None bounds the risk itself instead of the excess.
        rung: which inequality of the ladder.
        trivial_risk: risk of the predictor that knows nothing (the excess, if ``bayes_risk`` is given).

    Returns:
        Bound with delta 0: it is about population quantities, here estimated.

    Raises:
        InputError: wrong number of risks, a risk outside [0, M], or a Bayes risk above its teacher's.

    Source: docs/theory.md (8). Status: worst of the inputs.
    """
    rungs = {name: getattr(ladder, name) for name in ("total_variation", "minimum", "pinsker", "bretagnolle_huber")}
    if rung not in rungs:
        refuse("rung", expected=tuple(rungs), got=rung, cure="choose one of these")
    check_risks(teacher_risk, ladder, "teacher risk")
    excess = list(teacher_risk)
    if bayes_risk is not None:
        check_risks(bayes_risk, ladder, "Bayes risk")
        excess = [weighted_sum([r, b], [1.0, -1.0]) for r, b in zip(teacher_risk, bayes_risk, strict=True)]
        for value in excess:
            check_estimate(value, "teacher's excess risk")
    teachers = TEACHERS_RISK if bayes_risk is None else TEACHERS_RISK.elsewhere("(8)", "Σα_t [R_t(p_t) − R_t*]")
    step = rungs[rung]
    terms = (
        teachers.average(excess, ladder.alpha),
        DISTILLATION.elsewhere("(8)", f"M·{step.name}").term(step.total, step.per_task),
    )
    assumptions = ("the cost lies in [0, M]", "p and q are probabilities at temperature 1", "unused data")
    return Bound(
        name="Theorem 3",
        reading="risk" if bayes_risk is None else "excess risk",
        terms=terms,
        delta=0.0,
        assumptions=assumptions,
        trivial_risk=trivial_risk,
    )


def check_risks(risks: Sequence[Estimate], ladder: Ladder, what: str) -> None:
    """Refuse anything but one risk in [0, M] per task of the ladder."""
    if len(risks) != len(ladder.alpha):
        refuse(what, expected=f"{len(ladder.alpha)} tasks", got=len(risks), cure="give one per task")
    for risk in risks:
        if check_estimate(risk, what).value > ladder.cost_bound:
            refuse(what, expected=f"<= M = {ladder.cost_bound}", got=risk.value, cure="use the cost's units")


def argmax_error(ladder: Ladder, teacher_error: Sequence[Estimate]) -> Bound:
    """Bound the 0-1 error of the student's argmax: err(q) <= err(p) + Pr[argmax q != argmax p].

    Args:
        ladder: carries the disagreement and alpha.
        teacher_error: error of argmax p_t per task, in [0, 1].

    Raises:
        InputError: wrong number of errors, or one outside [0, 1].

    Source: docs/theory.md section 7. Status: worst of the inputs (see ``certificates.disagreement``).
    """
    check_risks(teacher_error, replace(ladder, cost_bound=1.0), "teacher error")
    terms = (
        TEACHERS_ERROR.average(teacher_error, ladder.alpha),
        DISAGREEMENT.term(ladder.disagreement.total, ladder.disagreement.per_task),
    )
    return Bound(
        name="student's error", reading="argmax", terms=terms, delta=0.0, assumptions=("unused data",), trivial_risk=1.0
    )
