"""Splits dealt from one data set: disjoint, of the size that was asked, stratified, copies together, seeded."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bounds.types import InputError
from merging.data import groups, shares

ALL = {"train": 0.5, "calibration": 0.2, "validation": 0.1, "test": 0.2}


def labels_of(counts):
    labels = torch.cat([torch.full((count,), kind) for kind, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def check_disjoint(found, count):
    for first, second in combinations(found.values(), 2):
        assert not set(first.tolist()) & set(second.tolist())
    whole = torch.cat(list(found.values()))
    assert len(whole.unique()) == len(whole)
    assert 0 <= int(whole.min()) <= int(whole.max()) < count


@given(
    count=st.integers(20, 400),
    seed=st.integers(0, 99),
    classes=st.integers(1, 5),
    parts=st.lists(st.floats(0.1, 0.25), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_sizes_are_exact_and_splits_disjoint(count, seed, classes, parts):
    wanted = dict(zip(ALL, parts, strict=False))
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    found = shares(count, wanted, seed, labels)
    check_disjoint(found, count)
    assert list(found) == list(wanted)
    for name, part in wanted.items():
        assert abs(len(found[name]) - part * count) < 1
    assert abs(sum(map(len, found.values())) - sum(parts) * count) <= 0.5 + 1e-6


@pytest.mark.parametrize("count", [10, 37, 101, 999])
def test_shares_that_sum_to_one_use_every_example(count):
    found = shares(count, ALL, 0)
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(count))


def test_counts_are_exact_beside_shares():
    found = shares(101, {"test": 10, "train": 0.5, "validation": 7}, 0)
    assert {name: len(index) for name, index in found.items()} == {"train": 51, "validation": 7, "test": 10}
    assert len(shares(5, {"test": 1}, 0)["test"]) == 1
    assert len(shares(5, {"test": 1.0}, 0)["test"]) == 5


def test_every_beginning_of_every_split_holds_each_class_in_its_share():
    counts = (600, 300, 90, 10)
    labels = labels_of(counts)
    for index in shares(1000, ALL, 3, labels).values():
        for size in (1, 20, 50, len(index)):
            found = torch.bincount(labels[index[:size]], minlength=4)
            expected = torch.tensor(counts) / 1000 * size
            assert bool(((found - expected).abs() <= 2).all())
    found = torch.bincount(labels[shares(1000, {"test": 0.2}, 3, labels)["test"]])
    assert bool(((found - torch.tensor(counts) / 5).abs() <= 1).all())


def test_a_seed_is_an_order_and_another_seed_another_one():
    labels = labels_of((50, 50))
    first, again, other = (shares(100, ALL, seed, labels) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in ALL)
    assert not torch.equal(first["train"].sort().values, other["train"].sort().values)
    assert not torch.equal(first["train"], first["train"].sort().values)


@pytest.mark.parametrize("seed", range(5))
def test_copies_come_into_one_split_and_none_is_dropped(seed):
    generator = torch.Generator().manual_seed(seed)
    texts = [f"text {number}" for number in torch.randint(60, (200,), generator=generator).tolist()]
    found = shares(200, ALL, seed, groups=groups(texts))
    check_disjoint(found, 200)
    held = [{texts[row] for row in index.tolist()} for index in found.values()]
    assert not any(first & second for first, second in combinations(held, 2))
    assert sum(map(len, found.values())) == 200
    largest = max(texts.count(text) for text in texts)
    assert all(abs(len(found[name]) - part * 200) <= largest for name, part in ALL.items())
    alone = shares(200, ALL, seed)
    held = [{texts[row] for row in index.tolist()} for index in alone.values()]
    assert any(first & second for first, second in combinations(held, 2)), "the test would pass without groups"


def test_copies_do_not_change_exact_counts_where_single_examples_fill_the_room():
    texts = ["twice", "twice", *(f"text {number}" for number in range(98))]
    for seed in range(20):
        found = shares(100, {"test": 21, "validation": 10}, seed, groups=groups(texts))
        assert (len(found["test"]), len(found["validation"])) == (21, 10)


BAD = {
    "none": ({}, "got none"),
    "name": ({"tests": 0.5}, "train, calibration, validation, test; got 'tests'"),
    "too much": ({"train": 0.7, "test": 0.4}, "at most all 100 examples; got 1.1"),
    "too many": ({"train": 70, "test": 40}, "at most all 100 examples"),
    "both": ({"train": 0.7, "test": 40}, "at most all 100 examples; got 40 examples and shares of 0.7"),
    "zero": ({"test": 0.0}, "split test of splits: expected a share"),
    "zero examples": ({"test": 0}, "a share in 0..1 or a whole number"),
    "negative": ({"test": -0.5}, "a share in 0..1 or a whole number"),
    "a count as a fraction": ({"test": 40.0}, "write 40"),
    "nan": ({"test": float("nan")}, "a share in 0..1"),
    "true": ({"test": True}, "a share in 0..1"),
    "text": ({"test": "0.5"}, "a share in 0..1"),
    "rounds to none": (
        {"train": 0.9, "test": 0.001},
        "split test of splits: expected at least one example; got 0.001 of 100",
    ),
}


@pytest.mark.parametrize(("wanted", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_dealt_is_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        shares(100, wanted, 0)


def test_labels_and_groups_are_one_per_example_and_a_split_without_distinct_examples_is_refused():
    short = torch.zeros(9)
    for labels, groups_ in ((short, None), (None, short)):
        with pytest.raises(InputError, match=r"expected 10 whole numbers; got \(9,\)"):
            shares(10, {"test": 0.5}, 0, labels, groups_)
    with pytest.raises(InputError, match="10 examples, of which 1 are distinct"):
        shares(10, {"train": 0.5, "test": 0.5}, 0, groups=torch.zeros(10, dtype=torch.int64))
