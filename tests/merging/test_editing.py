"""A merge without an expert, scaled, with tensors back at θ_0: against merges and sums written out."""

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from bounds.autodiff import functional
from bounds.types import InputError, Sample
from merging import METHODS, TaskVectors, merge, merged, suite_from_modules
from merging.artifact import load, save
from merging.editing import Edit, earlier_edit, looked_at
from merging.editing import edited as edited_artifact
from merging.selection import KEPT, STATISTICS
from merging.suites import Suite, toy
from tests.laws import QUICK

CLOSED = {
    "average": {},
    "task_arithmetic": {"scale": 0.4},
    "ties": {"scale": 0.5},
    "dare_linear": {"scale": 0.4},
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
}


def edited(artifact: Any, suite: Suite, edit: Edit) -> Any:
    """The function under test; its coefficients may be taken for granted here."""
    return edited_artifact(artifact, suite, edit)


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def learned(suite):
    return merge("samerging", suite, steps=5, examples=8, batch=4)


def others(suite, *without):
    """The suite of the other experts, made without the code under test."""
    kept = [i for i, name in enumerate(suite.task_vectors.names) if name not in without]
    vectors = TaskVectors(
        suite.task_vectors.base,
        [suite.task_vectors.deltas[i] for i in kept],
        [suite.task_vectors.names[i] for i in kept],
    )
    return Suite("toy", vectors, [suite.tasks[i] for i in kept], sources=suite.sources)


@pytest.mark.parametrize("method", CLOSED)
def test_a_closed_form_without_an_expert_is_the_merge_of_the_others(suite, method):
    whole = merge(method, suite, **CLOSED[method])
    found = edited(whole, suite, Edit(without=("task1",)))
    expected: Any = merge(method, others(suite, "task1"), **CLOSED[method])
    assert list(found.names) == list(whole.names), "its tasks stay"
    for name, value in expected.merged.items():
        assert torch.equal(found.merged[name], value), name
        assert not torch.equal(found.merged["first.weight"], whole.merged["first.weight"])
    if expected.coefficients is None:
        assert found.coefficients is None
    else:
        assert torch.equal(found.coefficients[[0, 2]], expected.coefficients)
        assert not found.coefficients[1].any()
        assert found.blocks == expected.blocks


def test_the_scale_that_was_chosen_stays_and_nothing_is_searched_again(suite):
    whole = merge("ties", suite)
    assert whole.settings["scale"] is None
    found = edited(whole, suite, Edit(without=("task0",)))
    expected = merge("ties", others(suite, "task0"), scale=whole.history["chosen_scale"][0])
    assert torch.equal(found.merged["first.weight"], expected.merged["first.weight"])
    assert found.history == whole.history


@pytest.mark.parametrize("after", ["svc", "svc:floor=1", "lines:rise=0.5", "svc+lines:low=0.2,rise=1"])
def test_what_followed_the_method_follows_again(suite, after):
    found = edited(merge(f"ties:scale=0.5+{after}", suite), suite, Edit(without=("task1",)))
    expected = merge(f"ties:scale=0.5+{after}", others(suite, "task1"))
    for name, value in expected.merged.items():
        assert torch.equal(found.merged[name], value), name


def test_a_rise_that_was_chosen_on_labels_stays(suite):
    whole = merge("ties:scale=0.5+lines", suite)
    found = edited(whole, suite, Edit(without=("task1",)))
    rise = whole.history["lines_rise"][0]
    expected = merge(f"ties:scale=0.5+lines:rise={rise}", others(suite, "task1"))
    assert torch.equal(found.merged["first.weight"], expected.merged["first.weight"])
    assert found.used == whole.used == {"validation": 20}


def test_coefficients_that_svc_took_away_cannot_be_dropped(suite):
    made = merge("samerging+svc", suite, steps=2, examples=8, batch=4)
    with pytest.raises(InputError, match=r"merge by samerging\+svc"):
        edited(made, suite, Edit(without=("task1",)))


def test_learned_coefficients_of_an_expert_are_dropped_and_the_others_stay(suite, learned):
    found = edited(learned, suite, Edit(without=("task1",)))
    rows = learned.coefficients.clone()
    rows[1] = 0
    assert torch.equal(found.coefficients, rows)
    expected = merged(suite.task_vectors, rows, learned.blocks)
    for name, value in expected.items():
        assert torch.allclose(found.merged[name], value, atol=1e-14)
    wrong = merged(suite.task_vectors, learned.coefficients.roll(1, 0) * rows.bool(), learned.blocks)
    assert not torch.allclose(found.merged["first.weight"], wrong["first.weight"], atol=1e-3), "a mutant"


def test_weights_that_are_not_those_of_the_coefficients_keep_their_difference(suite, learned):
    bent = dataclasses.replace(learned, merged={k: v + 0.5 for k, v in learned.merged.items()})
    straight, found = (edited(a, suite, Edit(without=("task1",))).merged for a in (learned, bent))
    for name, value in straight.items():
        assert torch.allclose(found[name], value + 0.5, atol=1e-12)


def test_running_statistics_are_the_mean_of_the_others():
    def network(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
        for _ in range(3):
            net(torch.randn(40, 4).double() + seed)
        return net.eval()

    def sample():
        return Sample(torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,)))

    splits = ("train", "calibration", "validation", "test")
    data = {name: {split: sample() for split in splits} for name in ("one", "two", "three")}
    suite = suite_from_modules(network(0), {n: network(i) for i, n in enumerate(data, 1)}, data)
    whole = merge("samerging", suite, steps=2, examples=8, batch=4)
    found = edited(whole, suite, Edit(without=("two",)))
    column = list(found.blocks).index(STATISTICS)
    assert found.coefficients[:, column].tolist() == pytest.approx([0.5, 0, 0.5])
    for name in found.blocks[STATISTICS]:
        experts = [functional(network(seed))[1][name] for seed in (1, 3)]
        assert torch.allclose(found.merged[name], (experts[0] + experts[1]) / 2)


def test_a_scale_multiplies_the_displacement_and_the_coefficients(suite, learned):
    found = edited(learned, suite, Edit(scale=1.5))
    for name, base in suite.task_vectors.base.items():
        assert torch.allclose(found.merged[name] - base, 1.5 * (learned.merged[name] - base))
    assert torch.equal(found.coefficients, 1.5 * learned.coefficients)


def test_tensors_go_back_to_the_base_and_their_coefficients_to_zero(suite, learned, tmp_path):
    found = edited(learned, suite, Edit(base=("first*",)))
    assert torch.equal(found.merged["first.weight"], suite.task_vectors.base["first.weight"])
    assert torch.equal(found.merged["second.weight"], learned.merged["second.weight"])
    assert found.blocks[KEPT] == ("first.weight",)
    again = merged(suite.task_vectors, found.coefficients, found.blocks)
    assert all(torch.allclose(again[name], value) for name, value in found.merged.items())
    save(found, tmp_path / "out.pt")
    assert earlier_edit(load(tmp_path / "out.pt")) == Edit(base=("first*",))
    one = edited(merge("average", suite), suite, Edit(base=("first*",)))  # of a block only a part goes back
    assert one.blocks == {"model": ("second.weight",), KEPT: ("first.weight",)}


@pytest.mark.parametrize("method", ["ties", "samerging", "average"])
def test_edits_add_up_in_any_order(suite, learned, method):
    start: Any = learned if method == "samerging" else merge(method, suite, **CLOSED[method])
    both = Edit(without=("task1",), scale=1.3, base=("second.*",))
    expected = edited(start, suite, both)
    found: Any
    parts = [Edit(scale=1.3), Edit(without=("task1",)), Edit(base=("second.*",))]
    for order in (parts, parts[::-1], [parts[1], parts[0], parts[2]]):
        found = start
        for part in order:
            found = edited(found, suite, part)
        assert earlier_edit(found) == both
        for name, value in expected.merged.items():
            assert torch.allclose(found.merged[name], value, atol=1e-12), (order, name)
        if expected.coefficients is not None:
            assert torch.allclose(found.coefficients, expected.coefficients)


def test_an_expert_that_is_out_already_changes_nothing(suite, learned):
    out = edited(learned, suite, Edit(without=("task1",)))
    again = edited(out, suite, Edit(without=("task1",)))
    assert all(torch.equal(again.merged[name], value) for name, value in out.merged.items())


def test_what_cannot_be_done_is_refused(suite, learned):
    average = merge("average", suite)
    edit: dict[str, Any]
    for artifact, edit, message in (
        (average, {"without": ("nix",)}, "expert: expected task0 or task1 or task2; got 'nix'"),
        (learned, {"without": ("nix",)}, "expert: expected task0"),
        (average, {"without": ("task0", "task1", "task2")}, "fewer than all"),
        (average, {"base": ("third.*",)}, "pattern 'third.*'"),
        (average, {"scale": float("nan")}, "scale: expected a finite number"),
        (dataclasses.replace(learned, coefficients=None, blocks=None), {"without": ("task0",)}, "has coefficients"),
    ):
        with pytest.raises(InputError, match=message.replace("*", r"\*")):
            edited(artifact, suite, Edit(**edit))
    with pytest.raises(InputError, match="artifact's sources"):
        edited(average, toy.build(seed=1), Edit(scale=2.0))
    with pytest.raises(InputError, match="distinct names"):
        suite.task_vectors.of_experts([])


def test_every_row_is_left_an_expert_out_but_those_that_cannot_be(suite):
    """Rows that come later, too: slerp merges two, this world has no modules, the others keep no λ."""
    refused = set()
    for method, row in METHODS.items():
        given = {name: QUICK[name] for name in row.settings.__dataclass_fields__ if name in QUICK}
        with contextlib.suppress(InputError):
            refused.add(method)
            whole = merge(method, suite, **given)
            found = edited(whole, suite, Edit(without=("task2",)))
            assert any(not torch.equal(found.merged[k], v) for k, v in whole.merged.items()), method
            refused.remove(method)
    assert refused == {"slerp", "prodistill", "prodistill_entry", "adamerging++", "symerge", "adarank"}


def test_candidates_multiply_and_what_is_not_known_stays_so(suite):
    fixed, tuned = merge("average", suite), merge("ties", suite)
    assert looked_at(fixed, 1) is fixed
    assert looked_at(fixed, 9).used == {"validation": 9}
    assert looked_at(tuned, 9).used == {"validation": 9 * 20}
    unknown = dataclasses.replace(fixed, used={"validation": None})
    assert looked_at(unknown, 9).used == {"validation": None}
    assert looked_at(dataclasses.replace(fixed, used=None), 9).used is None
    with pytest.raises(InputError, match="candidates: expected at least 1"):
        looked_at(fixed, 0)
