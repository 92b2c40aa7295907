"""PAC-Bayes for one task: Lemma 1, its flatness forms, and the comparators (docs/theory.md section 2).

Choices made on grids are paid for by ``log_choices`` = ln G (``posterior.log_choices``; 0 when nothing was chosen on
data): the price ln(G/delta) replaces ln(1/delta). eta is fixed in advance or chosen on a grid that is paid for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bounds.pac_bayes.divergences import kl_inverse
from bounds.pac_bayes.posterior import amplification, checked_grid, dependent_sum, price, product, uncertified
from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_estimate, check_nonnegative, check_positive

CE_FLATNESS = 0.4073
"""An upper value of sup_{l > 0} (1 - e^-l)^2 / l = 0.40726..., used by (3) for cross-entropy."""

IID = "the n training points are i.i.d. and the prior does not depend on them"
GRIDS = "eta and sigma are fixed in advance, or chosen on grids paid for in the price"
QSB = "quadratic self-bounding: E_z[(E_Q l)^2] <= C E_z[E_Q l], C < 2/eta"
POINCARE = "l is locally Lipschitz in theta, Q is Gaussian (Poincaré inequality) and L(Q) is finite"


def _complexity(kl: float, delta: float, log_choices: float, rate: float) -> Estimate:
    """(KL + ln(G/delta)) / rate, in nats; exact."""
    return Estimate((check_nonnegative(kl, "KL") + price(1, delta, log_choices)) / rate)


def lemma1(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    eta: float,
    second_moment: Estimate,
    *,
    delta: float,
    log_choices: float = 0.0,
    trivial_risk: float = math.inf,
) -> Bound:
    """(2a): L(Q) <= L^(Q) + (KL + ln(G/delta))/(eta n) + (eta/2) E_z E_Q l^2, for all Q at once.

    Args:
        posterior_risk: training risk E_Q L^ (mean over all n points).
        kl: KL(Q || P) in nats.
        n: size of the training sample.
        eta: rate > 0, fixed in advance or paid for in ``log_choices``.
        second_moment: E_z E_Q l^2, a population quantity (held-out estimate).
        delta: failure probability.
        log_choices: ln G of the choices made on data; 0 when nothing was chosen.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: any argument out of range.

    Source: docs/theory.md (2a). Status: that of ``second_moment``; never certified.
    """
    complexity = _complexity(kl, delta, log_choices, check_positive(eta, "eta") * check_count(n, "n"))
    moment = uncertified(check_estimate(second_moment, "second moment")).scaled(eta / 2.0)
    terms = (
        Term(
            symbol="L̂(Q)",
            name="posterior's training risk",
            equation="(2a)",
            estimate=check_estimate(posterior_risk, "posterior risk"),
        ),
        Term(symbol="(KL + ln 1/δ)/(ηn)", name="complexity", equation="(2a)", estimate=complexity),
        Term(symbol="(η/2) E E_Q ℓ²", name="second moment", equation="(2a)", estimate=moment),
    )
    return Bound(
        name="Lemma 1",
        reading="posterior",
        terms=terms,
        delta=delta,
        assumptions=(IID, GRIDS, "the loss is >= 0"),
        trivial_risk=trivial_risk,
    )


def flatness_bound(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    eta: float,
    qsb: Estimate,
    flatness: Estimate,
    *,
    delta: float,
    log_choices: float = 0.0,
    trivial_risk: float = math.inf,
) -> Bound:
    """(2): L(Q) <= A [L^(Q) + (KL + ln(G/delta))/(eta n)] + B E_D E_Q <grad l, S grad l>.

    Args:
        posterior_risk: training risk E_Q L^.
        kl: KL(Q || P) in nats.
        n: size of the training sample.
        eta: rate, with eta C < 2.
        qsb: QSB constant C; it may depend on Q and on the sample (``qsb_constant``).
        flatness: E_D E_Q sum_b sigma_b^2 ||grad_b l||^2 on unused data.
        delta: failure probability.
        log_choices: ln G of the choices made on data; 0 when nothing was chosen.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: any argument out of range, or eta C >= 2.

    Source: docs/theory.md (2). Status: worst of the inputs, never certified (QSB and flatness are population
    quantities). Standard errors include that of C.
    """
    a, b = amplification(eta, uncertified(qsb))
    complexity = _complexity(kl, delta, log_choices, eta * check_count(n, "n"))
    risk = product(a, uncertified(check_estimate(posterior_risk, "posterior risk")))
    flat = product(b, uncertified(check_estimate(flatness, "flatness")))
    terms = (
        Term(symbol="A L̂(Q)", name="posterior's training risk", equation="(2)", estimate=risk),
        Term(symbol="A (KL + ln 1/δ)/(ηn)", name="complexity", equation="(2)", estimate=product(a, complexity)),
        Term(symbol="B E E_Q⟨∇ℓ, Σ∇ℓ⟩", name="Poincaré flatness", equation="(2)", estimate=flat),
    )
    return Bound(
        name="flatness PAC-Bayes",
        reading="posterior",
        terms=terms,
        delta=delta,
        assumptions=(IID, GRIDS, QSB, POINCARE),
        trivial_risk=trivial_risk,
    )


def best_flatness_bound(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    eta_grid: Sequence[float],
    qsb: Estimate,
    flatness: Estimate,
    *,
    delta: float,
    log_choices: float = 0.0,
    trivial_risk: float = math.inf,
) -> tuple[float, Bound]:
    """(2) at the best eta of a grid, which is paid for here: (eta, bound).

    Args:
        posterior_risk: training risk E_Q L^.
        kl: KL(Q || P) in nats.
        n: size of the training sample.
        eta_grid: values fixed in advance; those with eta C >= 2 are passed over.
        qsb: QSB constant C.
        flatness: E_D E_Q sum_b sigma_b^2 ||grad_b l||^2 on unused data.
        delta: failure probability.
        log_choices: ln G of the choices beside this grid's; 0 when there are none.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: as ``flatness_bound``, an empty or non-positive grid, or no eta with eta C < 2.

    Source: docs/theory.md (2) and section 0. Status: as ``flatness_bound``.
    """
    grid = checked_grid(eta_grid, "eta grid")
    # Checked before ln|grid| is added, which could hide a negative value.
    chosen = check_nonnegative(log_choices, "ln G of the choices") + math.log(len(grid))
    usable = [eta for eta in grid if eta * qsb.value < 2.0]
    if not usable:
        refuse("eta grid", expected="an eta with eta C < 2", got=grid, cure="add smaller values of eta")
    paid = {"delta": delta, "log_choices": chosen, "trivial_risk": trivial_risk}
    bounds = [(eta, flatness_bound(posterior_risk, kl, n, eta, qsb, flatness, **paid)) for eta in usable]
    return min(bounds, key=lambda pair: pair[1].value)


def empirical_flatness_bound(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    eta: float,
    qsb: Estimate,
    curvature: Estimate,
    *,
    delta: float,
    refined: bool = False,
    gamma: float = 0.5,
    log_choices: float = 0.0,
    trivial_risk: float = math.inf,
) -> Bound:
    """(3), linearised model: L(Q) <= [L^(Q) + (KL + ln(G/delta))/(eta n)] / (1 - eta C/2 - eta gamma kappa_op).

    Args:
        posterior_risk: linearised training risk E_Q L^.
        kl: KL(Q || P) in nats.
        n: size of the training sample.
        eta: rate; the denominator must stay positive.
        qsb: QSB constant C.
        curvature: kappa_op >= sup_x lambda_max(J S J^T); with ``refined`` (cross-entropy only)
            D^2 = sup_x max_{k,k'} (e_k - e_k')^T J S J^T (e_k - e_k') at temperature 1, where 0.4073 D^2
            replaces 2 gamma kappa_op (at temperature u pass D^2/u^2).
        delta: failure probability.
        refined: whether ``curvature`` is D^2.
        gamma: smoothness of the loss in the scores (not used when ``refined``).
        log_choices: ln G of the choices made on data; 0 when nothing was chosen.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: any argument out of range, or a denominator that is not positive.

    Source: docs/theory.md (3). Status: worst of the inputs, never certified.
    """
    check_positive(eta, "eta")
    self_bound = CE_FLATNESS if refined else 2.0 * check_positive(gamma, "gamma")
    check_estimate(qsb, "QSB constant C")
    check_estimate(curvature, "curvature")
    # (3) is A of (2) with C + (2 gamma kappa_op, or 0.4073 D^2) for C.
    a, _ = amplification(eta, uncertified(dependent_sum([qsb, curvature], [1.0, self_bound])))
    complexity = _complexity(kl, delta, log_choices, eta * check_count(n, "n"))
    risk = product(a, uncertified(check_estimate(posterior_risk, "posterior risk")))
    terms = (
        Term(symbol="L̂(Q)/(1 − ηC/2 − ηγκ_op)", name="posterior's training risk", equation="(3)", estimate=risk),
        Term(
            symbol="(KL + ln 1/δ)/(ηn (1 − ηC/2 − ηγκ_op))",
            name="complexity",
            equation="(3)",
            estimate=product(a, complexity),
        ),
    )
    smooth = "cross-entropy" if refined else f"l is >= 0 and {gamma:g}-smooth in the scores"
    assumptions = (
        IID,
        GRIDS,
        QSB,
        POINCARE,
        "linearised network",
        smooth,
        "curvature holds on all of supp D",
    )
    return Bound(
        name="empirical flatness PAC-Bayes",
        reading="linearised",
        terms=terms,
        delta=delta,
        assumptions=assumptions,
        trivial_risk=trivial_risk,
    )


def maurer_bound(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    loss_bound: float,
    *,
    delta: float,
    log_choices: float = 0.0,
) -> Bound:
    """Bound a loss in [0, M]: L(Q) <= L^(Q) + M sqrt((KL + ln(2 sqrt(n) G/delta))/(2n)).

    Args:
        posterior_risk: training risk E_Q L^, at most M.
        kl: KL(Q || P) in nats.
        n: size of the training sample.
        loss_bound: M.
        delta: failure probability.
        log_choices: ln G of the choices of sigma (there is no eta); 0 when nothing was chosen.

    Raises:
        InputError: any argument out of range, or a risk above M.

    Source: docs/theory.md section 2 (Maurer's constant in McAllester's form). Status: certified when the
    posterior's training risk is exact, else that of ``posterior_risk``.
    """
    budget = _maurer_budget(kl, n, delta, log_choices)
    check_range(posterior_risk, loss_bound)
    margin = Estimate(loss_bound * math.sqrt(budget / 2.0), 0.0, n, "certified")
    return _comparator(
        "Maurer",
        posterior_risk,
        Term(symbol="M√((KL + ln 2√n/δ)/2n)", name="margin", equation="2", estimate=margin),
        delta,
    )


def kl_bound(
    posterior_risk: Estimate,
    kl: float,
    n: int,
    loss_bound: float,
    *,
    delta: float,
    log_choices: float = 0.0,
) -> Bound:
    """Bound a loss in [0, M]: L(Q) <= M kl^-1(L^(Q)/M | (KL + ln(2 sqrt(n) G/delta))/n).

    Arguments, errors and status as ``maurer_bound``, which it never exceeds (Pinsker). The second term is the
    difference to the training risk.

    Source: docs/theory.md section 2.
    """
    budget = _maurer_budget(kl, n, delta, log_choices)
    check_range(posterior_risk, loss_bound)
    upper = loss_bound * float(kl_inverse(min(posterior_risk.value / loss_bound, 1.0), budget))
    margin = Estimate(upper - posterior_risk.value, 0.0, n, "certified")
    return _comparator(
        "PAC-Bayes-kl",
        posterior_risk,
        Term(symbol="M kl⁻¹ − L̂(Q)", name="margin", equation="2", estimate=margin),
        delta,
    )


def _maurer_budget(kl: float, n: int, delta: float, log_choices: float) -> float:
    """(KL + ln(2 sqrt(n) G/delta)) / n, in nats."""
    return (
        check_nonnegative(kl, "KL") + math.log(2.0 * math.sqrt(check_count(n, "n"))) + price(1, delta, log_choices)
    ) / n


def _comparator(name: str, posterior_risk: Estimate, margin: Term, delta: float) -> Bound:
    risk = Term(symbol="L̂(Q)", name="posterior's training risk", equation="2", estimate=posterior_risk)
    return Bound(
        name=name,
        reading="posterior",
        terms=(risk, margin),
        delta=delta,
        assumptions=(IID, GRIDS, "the loss lies in [0, M]"),
    )


def check_range(risk: Estimate, loss_bound: float) -> None:
    """Refuse a risk outside [0, M]."""
    check_estimate(risk, "posterior risk")
    if risk.value > check_positive(loss_bound, "loss bound M"):
        refuse("posterior risk", expected=f"<= M = {loss_bound}", got=risk.value, cure="clip the loss or raise M")
