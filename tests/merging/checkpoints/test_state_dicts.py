"""State dicts of torch.save: which one is meant, and what is none."""

import argparse

import pytest
import torch
from torch import nn

from bounds.types import InputError
from merging.checkpoints import read_weights

A, B = nn.Linear(2, 3).state_dict(), nn.Linear(2, 3).state_dict()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": A, "ema": B},
        {"model": A, "model_ema": B, "best": torch.tensor(0.9)},
        {"anything": A, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        {"model_state_dict": A, "epoch": 3, "loss": torch.tensor(1.0)},
        {**A, "version": 3},
        {name: nn.Parameter(value) for name, value in A.items()},
    ],
)
def test_the_state_dict_that_is_meant(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt")
    assert list(found) == list(A)
    assert all(torch.equal(found[name], A[name]) and not found[name].requires_grad for name in A)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"first": A, "second": B}, "expected one state dict; got several: first, second; save the one"),
        ({"model": A, "state_dict": B}, "got several: state_dict, model"),
        ({"epoch": 3}, r"got no tensors under \['epoch'\]"),
        ({}, "got no tensors"),
        ([torch.ones(2)], "got a list; save module"),
        (torch.ones(2), "got a Tensor; save module"),
        ({"a": torch.eye(3).to_sparse()}, "got a sparse or quantised one"),
    ],
)
def test_what_is_no_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (nn.Linear(2, 3), r"torch\.nn\.modules\.linear\.Linear"),
        ({"state_dict": A, "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.Tanh()), "Sequential, .* and 2 more"),
    ],
)
def test_pickled_objects_are_sent_to_convert(content, named, modern, tmp_path):
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(
        InputError, match=rf"got pickled objects of .*{named}; mergebound convert .*x\.pt --to OUT\.saf"
    ):
        read_weights(tmp_path / "x.pt")
