"""Low-rank factors: multiplied out, and the nearest of their rank."""

import pytest
import torch

from bounds.types import InputError
from merging.checkpoints import apply_low_rank, low_rank_factors


def test_low_rank_factors_are_multiplied_out():
    base = {"w": torch.zeros(3, 2, 2), "b": torch.ones(3)}
    factors = {"w.up": torch.randn(3, 1), "w.down": torch.randn(1, 4), "b.delta": torch.arange(3.0)}
    expert = apply_low_rank(base, factors)
    assert torch.allclose(expert["w"].flatten(1), torch.outer(factors["w.up"][:, 0], factors["w.down"][0]))
    assert expert["b"].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="up and down"):
        apply_low_rank(base, {k: v for k, v in factors.items() if k != "w.up"})
    with pytest.raises(InputError, match="low-rank factors of b"):
        apply_low_rank(base, {**factors, "b.delta": torch.zeros(4)})


def test_factors_are_the_best_of_their_rank():
    change = {"weight": torch.randn(12, 20), "bias": torch.randn(12)}
    base = {name: torch.randn_like(value) for name, value in change.items()}
    expert = {name: base[name] + value for name, value in change.items()}
    found = low_rank_factors(change, 4)
    assert found["weight.up"].shape == (12, 4)
    assert all(value.dtype == torch.float16 for value in found.values())
    made = apply_low_rank(base, {name: value.float() for name, value in found.items()})
    left = torch.linalg.svdvals(change["weight"])[4:].norm()
    assert float((made["weight"] - expert["weight"]).norm()) == pytest.approx(float(left), rel=1e-3)
    torch.testing.assert_close(made["bias"], expert["bias"], rtol=0, atol=2e-3)


def test_tensors_that_are_kept_whole_are_not_approximated():
    base = {"weight": torch.zeros(6, 6), "positions": torch.zeros(6, 6)}
    change = {name: torch.randn(6, 6) for name in base}
    made = apply_low_rank(base, low_rank_factors(change, 1, whole=("positions",)))
    torch.testing.assert_close(made["positions"], change["positions"], rtol=0, atol=2e-3)
    assert not torch.allclose(made["weight"].float(), change["weight"], atol=1e-1)
