"""Matrices are rounded to int8 row by row; everything else is kept."""

import torch

from merging.suites.text8.stored import read_rounded, write_rounded


def test_the_error_is_a_step_of_the_row(tmp_path):
    matrix = torch.randn(5, 40) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 1.0])[:, None]
    write_rounded({"m": matrix, "v": matrix[1]}, tmp_path / "w.safetensors")
    found = read_rounded(tmp_path / "w.safetensors")
    assert list(sorted(found)) == ["m", "v"]
    assert torch.equal(found["v"], matrix[1])
    assert bool(((found["m"] - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 253.9).all())
    assert torch.equal(found["m"][3], torch.zeros(40))
    assert (tmp_path / "w.safetensors").stat().st_size < 2 * matrix.numel() + 500


def test_rounding_again_changes_nothing(tmp_path):
    write_rounded({"m": torch.randn(6, 8)}, tmp_path / "one")
    write_rounded(once := read_rounded(tmp_path / "one"), tmp_path / "two")
    torch.testing.assert_close(read_rounded(tmp_path / "two")["m"], once["m"], rtol=1e-6, atol=0)
