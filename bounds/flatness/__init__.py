"""Flatness: gradient norms (the Poincaré term), sharpness within a radius, curvature."""

from bounds.flatness.gradients import GradientNorm, gradient_norm, gradient_second_moment, kernel_second_moment
from bounds.flatness.radius import Sharpness, sharpness

__all__ = [
    "GradientNorm",
    "Sharpness",
    "gradient_norm",
    "gradient_second_moment",
    "kernel_second_moment",
    "sharpness",
]
