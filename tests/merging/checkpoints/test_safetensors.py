"""Safetensors read as float32, and the digest of files."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from bounds.types import InputError
from merging.checkpoints import map_safetensors, read_safetensors, sha256


def test_numbers_come_in_at_least_float32_and_are_finite(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"half": torch.ones(2).half(), "double": torch.ones(2).double()}, path)
    assert {name: value.dtype for name, value in read_safetensors(path).items()} == {
        "half": torch.float32,
        "double": torch.float64,
    }
    assert map_safetensors(path)["half"].dtype == torch.float16
    save_file({"w": torch.tensor([1.0, torch.nan])}, path)
    assert len(map_safetensors(path)) == 1
    with pytest.raises(InputError, match="w: expected finite numbers"):
        read_safetensors(path)


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**20 + 1, 3 * 2**20])
def test_the_digest_is_that_of_the_whole_file(size, tmp_path):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
