"""What a report costs is counted in passes of the network, and no section keeps as much as one network."""

import json

import pytest
import torch
from torch import nn

from bounds.autodiff import without_jit_warning
from diagnostics.benchmark.__main__ import main
from diagnostics.benchmark.measuring import small_vit
from diagnostics.benchmark.report import Multiplications

SMALL = ["report", "--model", "tiny", "--tasks", "2", "--held-out", "4", "--train", "4", "--kernel", "4"]


def operations(function):
    with Multiplications() as counted:
        function()
    return counted.total


def test_passes_derivatives_and_vmap_are_counted_by_their_products():
    weight, x = torch.randn(5, 3), torch.randn(7, 5)
    one = 2 * 7 * 5 * 3
    assert operations(lambda: x @ weight) == one
    with without_jit_warning():  # the derivative of x counts, too, though it is 0
        assert operations(lambda: torch.func.jvp(lambda w: x @ w, (weight,), (weight,))) == 3 * one
    pull = torch.func.vjp(lambda w: x @ w, weight)[1]
    assert operations(lambda: pull(torch.ones(7, 3))) == one
    assert operations(lambda: torch.vmap(pull)(torch.ones(4, 7, 3))) == 4 * one
    assert operations(lambda: x.exp().sum()) == 0


def test_attention_in_one_piece_counts_as_its_parts():
    """PyTorch takes it in evaluation without gradients; its own table of formulas does not know it."""
    layer, x = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(3, 5, 16)
    with torch.no_grad():
        in_one = operations(lambda: layer(x, x, x, need_weights=False))
    parts = operations(lambda: layer(x, x, x, need_weights=True))
    assert in_one == parts == 2 * 3 * 5 * (4 * 16 * 16 + 2 * 5 * 16)


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    out = folder / "costs.json"
    given = [*SMALL, "--sections", "bound", "flatness", "--folder", str(folder), "--json-out", str(out)]
    assert main(given) == 0
    assert [file.name for file in folder.iterdir()] == ["costs.json"], "what was made is removed"
    return {cost["section"]: cost for cost in json.loads(out.read_text())}


def test_sections_and_their_sum(costs):
    assert list(costs) == ["bound", "flatness", "whole report"]
    bound, flatness, whole = costs.values()
    for name in ("passes", "an_example", "seconds", "cache_bytes"):
        assert whole[name] == pytest.approx(bound[name] + flatness[name])
        assert bound[name] > 0
    assert whole["private_bytes"] == max(bound["private_bytes"], flatness["private_bytes"])
    assert bound["an_example"] == pytest.approx(bound["passes"] / (2 * (4 + 4)))


def test_the_bound_takes_forty_passes_an_example_at_most(costs):
    """By hand (docs/report.md) with 10 classes, 2 experts and 17 tokens; pieces that ask for the number of scores: 0.5.

    A derivative along each expert of its own would add 3 passes.
    """
    held_out = 19 + 9 * (9 + 2) / 17 + 6 + (2 + 3)
    training = 19 + 9 * (9 + 1) / 17 + 1 + 6
    by_hand = (held_out + training) / 2
    assert by_hand < costs["bound"]["an_example"] < by_hand + 2 < 40


def test_less_than_a_network_is_kept(costs):
    network = sum(value.nbytes for value in small_vit()[1].values())
    assert costs["whole report"]["cache_bytes"] < network / 4


def test_bad_options_are_one_line(capsys):
    assert main(["report", "--tasks", "1"]) == 2
    assert "tasks: expected at least 2; got 1" in capsys.readouterr().err
    assert main([*SMALL, "--sections", "bond"]) == 2
    assert "section: expected" in capsys.readouterr().err
