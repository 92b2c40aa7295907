"""What can be certified from data: counts of errors, and PAC-Bayes over coefficients."""

from bounds.certificates.coefficients import Stratum, coefficient_kl, coefficient_pac_bayes, stratified_error
from bounds.certificates.counts import Count, Method, disagreement, held_out, mixture, pooled

__all__ = [
    "Count",
    "Method",
    "Stratum",
    "coefficient_kl",
    "coefficient_pac_bayes",
    "disagreement",
    "held_out",
    "mixture",
    "pooled",
    "stratified_error",
]
