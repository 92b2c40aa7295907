"""The empirical neural tangent kernel: blocks and traces per example, Gram matrices, eigenvalues and drift."""

from bounds.ntk.blocks import ExampleProducts, example_blocks, example_products
from bounds.ntk.eigenvalues import Drift, Spectrum, drift, gram_drift, gram_spectrum, spectrum
from bounds.ntk.gram_matrix import gram
from bounds.ntk.quadratic import quadratic_form
from bounds.ntk.traces import KernelTrace, trace

__all__ = [
    "Drift",
    "ExampleProducts",
    "KernelTrace",
    "Spectrum",
    "drift",
    "example_blocks",
    "example_products",
    "gram",
    "gram_drift",
    "gram_spectrum",
    "quadratic_form",
    "spectrum",
    "trace",
]
