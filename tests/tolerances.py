"""The tolerances of fast against slow, by dtype."""

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: {"rtol": 1e-8, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
}


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Compare in float64 at the tolerance of ``dtype``; atol is relative to the largest expected entry."""
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance["rtol"], atol=tolerance["atol"] * max(scale, 1e-300))
