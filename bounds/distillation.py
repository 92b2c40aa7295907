"""What imitating the teachers controls: the ladder of divergences behind Theorem 3 (docs/theory.md (8))."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from bounds import scores
from bounds.scores import log_probabilities
from bounds.types import Estimate, refuse, weighted_sum
from bounds.validation import check_finite, check_positive, check_weights


def _log_probabilities(p_scores: Tensor, q_scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if p_scores.ndim != 2 or p_scores.shape != q_scores.shape:
        got = (tuple(p_scores.shape), tuple(q_scores.shape))
        refuse("scores", expected="two tensors [N, C]", got=got, cure="use one head and the same examples")
    check_positive(temperature, "temperature")
    p, q = check_finite(p_scores, "teacher scores"), check_finite(q_scores, "student scores")
    return log_probabilities(p, temperature), log_probabilities(q, temperature)


def total_variation(p_scores: Tensor, q_scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return TV(p, q) = 1/2 sum_k |p_k - q_k| of the softmaxes, per example.

    Args:
        p_scores: [N, C] finite scores of the teacher.
        q_scores: [N, C] finite scores of the student.
        temperature: scores are divided by it.

    Returns:
        [N] float64 in [0, 1].

    Raises:
        InputError: shapes differ, non-finite scores, empty, temperature <= 0.

    Source: docs/theory.md (8). Status: exact given the scores.
    """
    p, q = _log_probabilities(p_scores, q_scores, temperature)
    return 0.5 * (p.exp() - q.exp()).abs().sum(-1)


def kl(p_scores: Tensor, q_scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(p || q) of the softmaxes at ``temperature``, per example, in nats (no temperature^2 factor).

    Arguments and errors as ``total_variation``. Computed from log-softmaxes: finite at scores of +-200.

    Returns:
        [N] float64, >= 0.

    Source: docs/theory.md (8). Status: exact given the scores.
    """
    p, q = _log_probabilities(p_scores, q_scores, temperature)
    return scores.kl(p, q).clamp_min(0.0)


def error_by_teacher(p_scores: Tensor, q_scores: Tensor) -> Tensor:
    """Return 1 - p(k), k = argmax q: how probable the teacher holds it that the student's label is wrong, per example.

    Its mean is the student's 0-1 error if the labels given x are distributed as the teacher says. In general it misses
    the error by E[P(y = k | x) - p(k | x)], the teacher's error of calibration at the student's labels: an estimate of
    the error that rests on the teacher, neither a bound on it nor a certificate.

    Args:
        p_scores: [N, C] finite scores of the teacher.
        q_scores: [N, C] finite scores of the student.

    Returns:
        [N] float64 in [0, 1].

    Raises:
        InputError: shapes differ, non-finite scores, empty.

    Status: exact given the scores; as the student's error assumed.
    """
    p, q = _log_probabilities(p_scores, q_scores, 1.0)
    return -p.gather(1, q.argmax(dim=1, keepdim=True))[:, 0].expm1()


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: a value per task and in total (alpha-weighted, Jensen across tasks)."""

    name: str
    equation: str
    per_task: tuple[Estimate, ...]
    total: Estimate


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Upper bounds on the excess risk that the student adds to the teachers', in units of the cost.

    ``total_variation`` <= ``minimum`` = min(``pinsker``, ``bretagnolle_huber``), each times the cost bound M.
    ``divergence`` is E KL(p||q) in nats at temperature 1; ``surrogate`` the same at ``surrogate_temperature``
    (what was trained on; no theorem about it); ``disagreement`` is Pr[argmax q != argmax p].
    """

    total_variation: Rung
    pinsker: Rung
    bretagnolle_huber: Rung
    minimum: Rung
    divergence: Rung
    disagreement: Rung
    surrogate: Rung
    surrogate_temperature: float
    alpha: tuple[float, ...]
    cost_bound: float

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The upper bounds, tightest first."""
        return self.total_variation, self.minimum, self.pinsker, self.bretagnolle_huber


def pinsker(divergence: Estimate, cost_bound: float = 1.0) -> Estimate:
    """Return M sqrt(KL/2) with its delta-method standard error (Pinsker; Jensen when KL is a mean)."""
    return _rung(divergence, cost_bound, lambda k: math.sqrt(k / 2.0), lambda k: 0.5 / math.sqrt(2.0 * k))


def bretagnolle_huber(divergence: Estimate, cost_bound: float = 1.0) -> Estimate:
    """Return M sqrt(1 - exp(-KL)) with its delta-method standard error (Bretagnolle-Huber; never above M)."""
    return _rung(
        divergence,
        cost_bound,
        lambda k: math.sqrt(-math.expm1(-k)),
        lambda k: 0.5 * math.exp(-k) / math.sqrt(-math.expm1(-k)),
    )


def _rung(
    divergence: Estimate, cost_bound: float, curve: Callable[[float], float], slope: Callable[[float], float]
) -> Estimate:
    k = divergence.value
    spread = divergence.stderr * slope(k) if k > 0.0 and divergence.stderr > 0.0 else divergence.stderr
    return Estimate(cost_bound * curve(k), cost_bound * spread, divergence.n, divergence.status)


@dataclass(frozen=True, kw_only=True)
class Divergences:
    """What tells a student from its teacher on the N examples of a task, [N] each, float64.

    ``variation`` is TV(p, q), ``divergence`` KL(p || q) in nats, both at temperature 1; ``disagreement`` is whether
    the likeliest classes differ; ``surrogate`` is KL(p || q) at the temperature that was trained on. Where an example
    has scores at many positions they are means over those that count (docs/theory.md section 19).
    """

    variation: Tensor
    divergence: Tensor
    disagreement: Tensor
    surrogate: Tensor

    def __post_init__(self) -> None:
        sizes = {len(check_finite(getattr(self, f.name), f.name)) for f in fields(self)}
        if len(sizes) != 1:
            refuse("divergences", expected="one of each per example", got=sorted(sizes), cure="align the examples")


def divergences(p_scores: Tensor, q_scores: Tensor, surrogate_temperature: float = 1.0) -> Divergences:
    """Compare the softmaxes of a teacher's and a student's scores, row by row.

    Args:
        p_scores: [N, C] finite scores of the teacher.
        q_scores: [N, C] finite scores of the student.
        surrogate_temperature: of the KL that was trained on.

    Raises:
        InputError: as :func:`kl`.

    Source: docs/theory.md (8). Status: exact given the scores.
    """
    exact = kl(p_scores, q_scores)
    return Divergences(
        variation=total_variation(p_scores, q_scores),
        divergence=exact,
        disagreement=(p_scores.argmax(-1) != q_scores.argmax(-1)).double(),
        surrogate=exact if surrogate_temperature == 1 else kl(p_scores, q_scores, surrogate_temperature),
    )


def ladder(
    teacher_scores: Sequence[Tensor],
    student_scores: Sequence[Tensor],
    alpha: Sequence[float] | Tensor,
    cost_bound: float = 1.0,
    *,
    surrogate_temperature: float = 2.0,
) -> Ladder:
    """Compute every rung of (8) per task and in total, from scores on held-out inputs (no labels needed).

    Args:
        teacher_scores: per task [N_t, C_t], at temperature 1.
        student_scores: per task [N_t, C_t], same examples and head.
        alpha: evaluation weights [T] on the simplex.
        cost_bound: M, the range of the cost c(k, y) (1 for 0-1).
        surrogate_temperature: of the KL reported beside.

    Returns:
        Ladder of means over examples. Status: estimated; TV carries no slack, the others show what Pinsker,
        Bretagnolle-Huber and Jensen cost.

    Raises:
        InputError: no task, unequal numbers of tasks, shapes that differ, non-finite scores, alpha off the
            simplex, M <= 0.

    Source: docs/theory.md (8).
    """
    tasks = len(teacher_scores)
    if tasks == 0 or len(student_scores) != tasks:
        refuse("student scores", expected=f"{tasks} >= 1 tasks", got=len(student_scores), cure="pair the tasks")
    pairs = zip(teacher_scores, student_scores, strict=True)
    found = [divergences(p, q, surrogate_temperature) for p, q in pairs]
    return ladder_of(found, alpha, cost_bound, surrogate_temperature=surrogate_temperature)


def ladder_of(
    tasks: Sequence[Divergences],
    alpha: Sequence[float] | Tensor,
    cost_bound: float = 1.0,
    *,
    surrogate_temperature: float = 1.0,
) -> Ladder:
    """Compute every rung of (8) from what was measured of each example.

    Where an example has scores at many positions, its values are means over these, and (8) holds of an example's
    position drawn at random: the roots are concave, so that Jensen moves this mean inside, too.

    Args:
        tasks: per task, values of its examples. KL is that of whole distributions: of coarsened ones
            (:mod:`bounds.coarse`) it is too small, and no rung would be an upper bound.
        alpha: evaluation weights [T] on the simplex.
        cost_bound: M, the range of the cost c(k, y).
        surrogate_temperature: at which ``surrogate`` was measured.

    Raises:
        InputError: no task, alpha off the simplex, M <= 0.

    Source: docs/theory.md (8), (23). Status: estimated.
    """
    weights = check_weights(alpha, len(tasks), "alpha")
    check_positive(cost_bound, "cost bound M")

    def mean_rung(name: str, values: Sequence[Tensor], factor: float = 1.0) -> Rung:
        means = tuple(Estimate.of_mean(v).scaled(factor) for v in values)
        return Rung(name, "(8)", means, weighted_sum(means, weights))

    def curve_rung(name: str, curve: Callable[[Estimate, float], Estimate]) -> Rung:
        values = tuple(curve(e, cost_bound) for e in divergence.per_task)
        return Rung(name, "(8)", values, curve(divergence.total, cost_bound))

    divergence = mean_rung("KL", [t.divergence for t in tasks])
    pinsker_rung = curve_rung("Pinsker", pinsker)
    bretagnolle_huber_rung = curve_rung("Bretagnolle-Huber", bretagnolle_huber)
    return Ladder(
        total_variation=mean_rung("total variation", [t.variation for t in tasks], cost_bound),
        pinsker=pinsker_rung,
        bretagnolle_huber=bretagnolle_huber_rung,
        minimum=_minimum(pinsker_rung, bretagnolle_huber_rung),
        divergence=divergence,
        disagreement=mean_rung("disagreement", [t.disagreement for t in tasks]),
        surrogate=mean_rung("KL at the surrogate temperature", [t.surrogate for t in tasks]),
        surrogate_temperature=surrogate_temperature,
        alpha=weights,
        cost_bound=cost_bound,
    )


def _minimum(first: Rung, second: Rung) -> Rung:
    def smaller(a: Estimate, b: Estimate) -> Estimate:
        return a if a.value <= b.value else b

    values = tuple(smaller(a, b) for a, b in zip(first.per_task, second.per_task, strict=True))
    return Rung("minimum", "(8)", values, smaller(first.total, second.total))
