"""Rows of the table of perturbations: which passes a step takes, and the gradient in λ that it descends.

A row sees the network through one function, ``at``: a pass at a displaced point, with losses and gradients there. The
merged weights are recomputed in every pass. Rows act in λ unless their name says ``weights`` (θ).
"""

from __future__ import annotations

from collections.abc import Mapping

from merging.learned.perturbations.passes import At, Descent, Displacement, Memory, Pass, Perturbation, Step
from merging.learned.perturbations.sharpness import (
    friendly,
    gap,
    gradient_norm,
    in_coefficients,
    in_coefficients_adaptive,
    in_weights,
    look,
    momentum,
    plain,
    sharpness_aware,
)
from merging.learned.perturbations.smoothing import gauss_newton_trace, random_coefficients, random_weights

__all__ = [
    "PERTURBATIONS",
    "At",
    "Descent",
    "Displacement",
    "Memory",
    "Pass",
    "Perturbation",
    "Step",
    "in_coefficients",
    "in_coefficients_adaptive",
    "in_weights",
    "plain",
    "sharpness_aware",
]

PERTURBATIONS: Mapping[str, Perturbation] = {
    "none": Perturbation(plain, "1", "gradient descent"),
    "coefficients": Perturbation(sharpness_aware(in_coefficients), "2", "SAM, arXiv 2010.01412, in λ"),
    "coefficients-adaptive": Perturbation(
        sharpness_aware(in_coefficients_adaptive), "2", "adaptive SAM, arXiv 2102.11600, in λ"
    ),
    "weights": Perturbation(sharpness_aware(in_weights), "2", "SAM, arXiv 2010.01412, in θ"),
    "momentum": Perturbation(momentum, "1", "momentum-SAM, arXiv 2401.12033, in λ"),
    "look": Perturbation(look, "1 + 1/k", "LookSAM, arXiv 2203.02714, in λ"),
    "friendly": Perturbation(friendly, "2", "friendly SAM, arXiv 2403.12350, in λ"),
    "gap": Perturbation(gap, "2", "GSAM, arXiv 2203.08065, in λ"),
    "gradient-norm": Perturbation(gradient_norm, "2", "gradient-norm penalty, arXiv 2202.03599, in λ"),
    "ggn-trace": Perturbation(gauss_newton_trace, "4", "penalty on the trace of the Gauss-Newton matrix in λ"),
    "random": Perturbation(random_coefficients, "1", "Gaussian smoothing in λ"),
    "random-weights": Perturbation(random_weights, "1", "Gaussian smoothing in θ, σ per block"),
}
