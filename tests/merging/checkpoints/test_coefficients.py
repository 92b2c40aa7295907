"""FusionBench's coefficients: a column per trainable tensor, in the model's order."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from bounds.types import InputError
from merging.checkpoints import read_coefficients, write_coefficients

NET = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.BatchNorm1d(3), c=nn.Linear(3, 2)))
NAMES = [name for name, _ in NET.named_parameters()]
BLOCKS = {"last": ("c.weight", "c.bias"), "first": ("a.weight", "a.bias", "b.weight", "b.bias", "b.running_mean")}


def test_blocks_become_one_column_per_parameter(tmp_path):
    path = tmp_path / "merging_weights.pt"
    write_coefficients(path, torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=torch.float64), BLOCKS, NAMES)
    bare = torch.load(path)
    assert torch.equal(bare, torch.tensor([[0.2] * 4 + [0.1] * 2, [0.4] * 4 + [0.3] * 2, [0.6] * 4 + [0.5] * 2]))
    assert bare.dtype == torch.float32
    found, blocks = read_coefficients(path, NAMES, 3)
    assert torch.equal(found, bare)
    assert blocks == {name: (name,) for name in NAMES}


def test_fusion_bench_s_own_files(tmp_path):
    torch.save(nn.Parameter(torch.rand(2, 6)).data, tmp_path / "layer.pt")
    assert read_coefficients(tmp_path / "layer.pt", NAMES, 2)[0].shape == (2, 6)
    torch.save(torch.tensor([0.3, -1.5]), tmp_path / "task.pt")
    found, blocks = read_coefficients(tmp_path / "task.pt", NAMES, 2)
    assert found.tolist() == [[pytest.approx(0.3)], [-1.5]]
    assert blocks == {"model": tuple(NAMES)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.rand(2, 5), r"expected \[2, 6\]: 2 tasks, 6 trainable tensors; got \[2, 5\]"),
        (torch.rand(3, 6), r"got \[3, 6\]"),
        (torch.rand(6), r"got \[6\]"),
        (torch.rand(2, 6, 1), r"expected a tensor \[T, L\]"),
        (torch.ones(2, 6).long(), r"got torch.int64 \[2, 6\]"),
        ({"a": torch.rand(2, 6)}, "got a dict"),
        (torch.full((2, 6), torch.nan), "expected finite numbers"),
        (nn.Linear(2, 2), "expected a tensor that torch.save wrote"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_coefficients(tmp_path / "x.pt", NAMES, 2)


def test_names_and_blocks_must_agree(tmp_path):
    given = torch.rand(2, 2)
    for names, message in ((["x", *NAMES], "no coefficient for x"), ([], "no names"), (NAMES * 2, "repeated names")):
        with pytest.raises(InputError, match=message):
            write_coefficients(tmp_path / "x.pt", given, BLOCKS, names)
    with pytest.raises(InputError, match="one column per block"):
        write_coefficients(tmp_path / "x.pt", torch.rand(2, 3), BLOCKS, NAMES)
    assert not (tmp_path / "x.pt").exists()
