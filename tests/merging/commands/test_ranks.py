"""Ranks and groups of a comparison: by hand, and on simulated rows whose true ranks are known."""

import itertools

import pytest
import torch

from merging.commands import paired
from merging.commands.ranks import Standing, counted, groups, standings

WORLDS = 150


def row(text):
    return [torch.tensor([[float(bit) for bit in text]], dtype=torch.float64)]


def test_by_hand(monkeypatch):
    """Four merges, of which the first is told apart from the last two, and the second from the last."""
    rows = {name: row("1100") for name in "abcd"}
    known = {"ab": 0.2, "ac": 0.004, "ad": 0.001, "bc": 0.03, "bd": 0.01, "cd": 0.9}
    names = {id(values): name for name, values in rows.items()}
    monkeypatch.setattr(paired, "p_value", lambda x, y: known[names[id(x)] + names[id(y)]])
    # adjusted: ad 0.006, ac 0.020, bd 0.040, bc 0.090, ab 0.4, cd 0.9
    found = standings(rows)
    assert found == {
        "a": Standing(1, 2, ["b"], ["a"]),
        "b": Standing(1, 3, ["a", "c"], ["a", "b"]),
        "c": Standing(2, 4, ["b", "d"], ["b", "c"]),
        "d": Standing(3, 4, ["c"], ["c"]),
    }
    assert counted(found) == "Of all 6 pairs of merges together 3 are told apart. May have the best mean: a, b."
    strict = standings(rows, level=0.005)
    assert {(s.best, s.worst, *s.letters) for s in strict.values()} == {(1, 4, "a")}


@pytest.mark.parametrize("seed", range(5))
def test_rows_share_a_group_exactly_where_they_are_not_told_apart(seed):
    generator, labels = torch.Generator().manual_seed(seed), "abcdefgh"
    pairs = [frozenset(pair) for pair in itertools.combinations(labels, 2)]
    apart = {pair for pair, r in zip(pairs, torch.rand(len(pairs), generator=generator), strict=True) if r < 0.4}
    found = groups(labels, apart)
    for pair in pairs:
        assert any(pair <= group for group in found) == (pair not in apart)
    assert set().union(*found) == set(labels)
    assert not any(one < other for one, other in itertools.permutations(found, 2)), "the largest ones"
    whole = [set(c) for n in range(1, 9) for c in itertools.combinations(labels, n)]
    cliques = [c for c in whole if not any(pair <= c for pair in apart)]
    assert sorted(map(sorted, found)) == sorted(sorted(c) for c in cliques if not any(c < other for other in cliques))


def test_one_merge_has_the_only_rank():
    assert standings({"a": row("10")})["a"].letters == ["a"]
    assert counted(standings({"a": row("10")})) == (
        "Of all 0 pairs of merges together 0 are told apart. May have the best mean: a."
    )


def wrongs(levels):
    """Share of worlds in which a pair of equal rows is told apart, and in which a true rank is left out.

    Rows are right on an example of two tasks where its ease plus their own noise and ``levels`` is above 0.
    """
    generator, equal, outside = torch.Generator().manual_seed(0), 0, 0
    for _ in range(WORLDS):
        ease = torch.randn(2, 1, 120, generator=generator)
        drawn = [(ease + q + 0.7 * torch.randn(2, 1, 120, generator=generator) > 0).double() for q in levels]
        order = sorted(range(len(levels)), key=lambda i: -float(drawn[i].mean()))
        found = standings({str(i): list(drawn[i]) for i in order})
        pairs = itertools.combinations(range(len(levels)), 2)
        equal += any(levels[i] == levels[j] and str(j) not in found[str(i)].alike for i, j in pairs)
        for i, q in enumerate(levels):
            better, worse = (sum(sign * (other - q) > 0 for other in levels) for sign in (1, -1))
            if found[str(i)].best > 1 + better or found[str(i)].worst < len(levels) - worse:
                outside += 1
                break
    return equal / WORLDS, outside / WORLDS


@pytest.mark.parametrize("levels", [(0.0,) * 6, (0.0, 0.0, 0.0, 0.2, 0.4, 0.4)])
def test_statements_about_equal_rows_and_true_ranks_hold_together(levels):
    assert max(wrongs(levels)) <= 0.05


def test_pair_by_pair_they_do_not(monkeypatch):
    monkeypatch.setattr(paired, "holm", list)
    assert min(wrongs((0.0,) * 6)) > 0.15


def test_rows_that_differ_are_told_apart():
    ease = torch.linspace(-1, 1, 400)
    found = standings({str(q): [(ease + q > 0).double()[None]] for q in (0.4, 0.2, 0.0)})
    assert [(s.best, s.worst, *s.letters) for s in found.values()] == [(1, 1, "a"), (2, 2, "b"), (3, 3, "c")]
