"""The empirical neural tangent kernel: blocks and traces per example, Gram matrices, eigenvalues and drift."""

from bounds.ntk.blocks import KernelTrace, example_blocks, trace
from bounds.ntk.eigenvalues import Drift, Spectrum, drift, gram_drift, gram_spectrum, spectrum
from bounds.ntk.gram_matrix import gram
from bounds.ntk.quadratic import quadratic_form

__all__ = [
    "Drift",
    "KernelTrace",
    "Spectrum",
    "drift",
    "example_blocks",
    "gram",
    "gram_drift",
    "gram_spectrum",
    "quadratic_form",
    "spectrum",
    "trace",
]
