"""PAC-Bayes for one task: divergences, the posterior and what its choice costs, Lemma 1 and its forms."""

from bounds.pac_bayes.divergences import diagonal_gaussian_kl, gaussian_kl, kl_binary, kl_inverse, kl_lower_inverse
from bounds.pac_bayes.lemma import (
    CE_FLATNESS,
    GRIDS,
    IID,
    POINCARE,
    QSB,
    best_flatness_bound,
    empirical_flatness_bound,
    flatness_bound,
    kl_bound,
    lemma1,
    maurer_bound,
)
from bounds.pac_bayes.posterior import (
    amplification,
    log_choices,
    optimal_sigma,
    price,
    qsb_constant,
    round_to_grid,
)

__all__ = [
    "CE_FLATNESS",
    "GRIDS",
    "IID",
    "POINCARE",
    "QSB",
    "amplification",
    "best_flatness_bound",
    "diagonal_gaussian_kl",
    "empirical_flatness_bound",
    "flatness_bound",
    "gaussian_kl",
    "kl_binary",
    "kl_bound",
    "kl_inverse",
    "kl_lower_inverse",
    "lemma1",
    "log_choices",
    "maurer_bound",
    "optimal_sigma",
    "price",
    "qsb_constant",
    "round_to_grid",
]
