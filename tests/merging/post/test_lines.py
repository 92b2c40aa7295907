"""Linear scaling by depth against products written out, and what becomes of λ."""

import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, merge, merged
from merging.post.lines import depths, layers, mean_size
from merging.suites import Suite, toy
from merging.task import mean_accuracy
from tests.laws import world
from tests.tolerances import assert_near

NAMES = ("conv.weight", *(f"blocks.{i}.{part}" for i in range(4) for part in ("weight", "bias")), "head.weight")


def vectors(names=NAMES, tasks=2):
    base = {name: torch.randn(3, 2, dtype=torch.float64) for name in names}
    deltas = [{name: torch.randn(3, 2, dtype=torch.float64) for name in names} for _ in range(tasks)]
    return TaskVectors(base, deltas, [f"task{t}" for t in range(tasks)])


def test_depth_by_hand():
    """(ℓ - 1)/(L - 1) in numbered blocks, however many they are; 0 outside."""
    found = depths(vectors().base)
    assert {name: value for name, value in found.items() if "bias" not in name} == pytest.approx(
        {"conv.weight": 0, "blocks.0.weight": 0, "blocks.1.weight": 1 / 3, "blocks.2.weight": 2 / 3}
        | {"blocks.3.weight": 1, "head.weight": 0}
    )


def test_twelve_blocks_are_in_the_order_of_the_network_not_of_the_alphabet():
    found = depths({f"h.{i}.weight": torch.zeros(1) for i in range(12)})
    assert list(found.values()) == pytest.approx([i / 11 for i in range(12)])


def test_networks_without_blocks_have_a_layer_per_module():
    assert list(layers(world().task_vectors.base)) == ["first", "second"]
    with pytest.raises(InputError, match="network to scale by depth: expected at least two layers"):
        layers({"only.weight": torch.zeros(2, 2), "only.bias": torch.zeros(2)})


def test_the_merge_by_hand():
    tv = vectors()
    found = merge("task_arithmetic:scale=0.5+lines:low=0.2,rise=0.6", tv).merged
    for name, factor in {
        "conv.weight": 0.2,
        "blocks.0.bias": 0.2,
        "blocks.1.bias": 0.4,
        "blocks.3.weight": 0.8,
    }.items():
        total = tv.deltas[0][name] + tv.deltas[1][name]
        assert_near(found[name], tv.base[name] + factor * 0.5 * total)
    assert_near(found["head.weight"] - tv.base["head.weight"], 0.1 * tv.stacked["head.weight"].sum(dim=0))


def test_the_identity_keeps_the_bits():
    tv = vectors()
    before, after = merge("ties:scale=0.5", tv).merged, merge("ties:scale=0.5+lines:low=1,rise=0", tv).merged
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_first_factor_is_the_mean_size_of_the_sum():
    """‖Στ‖₁/(T ‖update‖₁) over the whole model: 1/T for a sum, the same whatever the scale that was chosen before."""
    tv = vectors(tasks=3)
    total = sum(float(v.sum(dim=0).abs().sum()) for v in tv.stacked.values())
    assert mean_size(tv, {name: value.sum(dim=0) for name, value in tv.stacked.items()}) == pytest.approx(1 / 3)
    update = {n: v - tv.base[n] for n, v in merge("ties:scale=0.5", tv).merged.items()}
    size = sum(float(value.abs().sum()) for value in update.values())
    made = merge("ties:scale=0.5+lines:rise=0", tv)
    assert made.history["lines_factors"][0] == pytest.approx(total / (3 * size))
    other = merge("ties:scale=0.1+lines:rise=0", tv).merged
    assert_near(torch.cat(list(made.merged.values())), torch.cat(list(other.values())))


BLOCKS = {"task": ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "top"], "tensor": list(NAMES)}


def test_coefficients_are_scaled_with_the_weights():
    tv = vectors()
    found = merge("task_arithmetic:scale=0.5+lines:low=0.2,rise=0.6", tv)
    assert found.coefficients is not None
    assert found.blocks is not None
    assert list(found.blocks) == BLOCKS["task"]
    assert_near(found.coefficients, torch.tensor([[0.1, 0.1, 0.2, 0.3, 0.4, 0.1]] * 2, dtype=torch.float64))
    again = merged(tv, found.coefficients, found.blocks)
    assert_near(torch.cat(list(again.values())), torch.cat(list(found.merged.values())))


def test_learned_coefficients_stay_learned_ones():
    """One λ per tensor: every block lies in one layer and keeps its name."""
    suite = world()
    settings = {"granularity": "tensor", "steps": 2, "examples": 10, "batch": 4}
    before = merge("samerging", suite, **settings)
    after = merge("samerging+lines:low=0.5,rise=0.25", suite, **settings)
    assert before.coefficients is not None
    assert after.coefficients is not None
    assert after.blocks == before.blocks
    assert_near(after.coefficients, before.coefficients * torch.tensor([0.5, 0.75]))
    assert after.used == {"calibration": None}


def turned(suite):
    """The suite with its two layers in the other order: what the experts change is the deepest layer."""
    tv = suite.task_vectors
    names = list(tv.base)[::-1]
    deltas = [{name: delta[name] for name in names} for delta in tv.deltas]
    return Suite("turned", TaskVectors({name: tv.base[name] for name in names}, deltas, tv.names), suite.tasks)


def test_the_rise_is_the_best_of_its_grid():
    suite = turned(toy.build(overlap=0.6))
    found = merge("ties:scale=1+lines", suite)
    looked = dict(zip(found.history["lines_rises"], found.history["lines_validation_accuracy"], strict=True))
    for rise, accuracy in looked.items():
        made = merge(f"ties:scale=1+lines:rise={rise}", suite).merged
        assert mean_accuracy(suite.tasks, made, "validation") == accuracy
    assert len(set(looked.values())) > 1
    best = min(rise for rise, accuracy in looked.items() if accuracy == max(looked.values()))
    assert found.history["lines_rise"] == [best]
    assert found.used == {"validation": 20}
