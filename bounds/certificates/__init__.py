"""What can be certified from data: counts of errors, weighted means, the ledger, and PAC-Bayes over coefficients."""

from bounds.certificates.coefficients import Stratum, coefficient_kl, coefficient_pac_bayes, stratified_error
from bounds.certificates.constants import choose_constants, data_free_constants
from bounds.certificates.counts import Count, Method, disagreement, held_out, mixture, pooled
from bounds.certificates.evalue import BoundedSample, Constants, Side
from bounds.certificates.ledger import Ledger, TaskLosses, ledger
from bounds.certificates.means import weighted_mean

__all__ = [
    "BoundedSample",
    "Constants",
    "Count",
    "Ledger",
    "Method",
    "Side",
    "Stratum",
    "TaskLosses",
    "choose_constants",
    "coefficient_kl",
    "coefficient_pac_bayes",
    "data_free_constants",
    "disagreement",
    "held_out",
    "ledger",
    "mixture",
    "pooled",
    "stratified_error",
    "weighted_mean",
]
