"""Rows that solve for λ on linearised scores: Gauss-Newton steps, and the one-step tangent merge."""

from merging.gauss_newton.settings import GaussNewtonSettings, TangentSettings
from merging.gauss_newton.solver import ROWS, coefficients, init, tangent, update

__all__ = ["ROWS", "GaussNewtonSettings", "TangentSettings", "coefficients", "init", "tangent", "update"]
