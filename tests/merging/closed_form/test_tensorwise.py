"""Rows that choose entries within each tensor: by hand, and against loops over sorted entries."""

import math

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, merge
from merging.closed_form import tensorwise
from merging.closed_form.tensorwise import keep_probabilities, magnitude_sampled, middle, select_calculate_erase
from merging.draws import task_generators
from tests.tolerances import assert_near


def vectors(**tensors):
    """Task vectors given as name -> list of one tensor per task; θ_0 = 0."""
    parts = {name: [torch.as_tensor(p, dtype=torch.float64) for p in value] for name, value in tensors.items()}
    tasks = range(len(next(iter(parts.values()))))
    base = {name: torch.zeros_like(value[0]) for name, value in parts.items()}
    return TaskVectors(base, [{n: v[t] for n, v in parts.items()} for t in tasks], [f"task{t}" for t in tasks])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Breadcrumbs


def test_breadcrumbs_by_hand():
    """Half of ten entries are looked at, the two largest of them dropped: three remain."""
    first = [10.0, -9, 8, -7, 6, 5, -4, 3, 2, 1]
    tv = vectors(w=[first, first[::-1]])
    found = merge("breadcrumbs", tv, (), density=0.5, outliers=0.2, scale=1.0).merged["w"]
    assert found.tolist() == [0, 0, 8, -7, 6, 6, -7, 8, 0, 0]


def between(delta, density, outliers):
    """The entries between both ends, chosen one by one in their order."""
    result = np.zeros_like(delta)
    order = sorted(range(len(delta)), key=lambda i: -abs(delta[i]))
    for place, i in enumerate(order):
        if round(outliers * len(delta)) <= place < round(density * len(delta)):
            result[i] = delta[i]
    return result


@pytest.mark.parametrize(("density", "outliers"), [(0.15, 0.006), (0.5, 0.1), (1.0, 0.25), (1.0, 0.0)])
def test_breadcrumbs_against_loops(density, outliers):
    deltas = drawn(3, 400)
    expected = [between(delta.numpy(), density, outliers) for delta in deltas]
    np.testing.assert_array_equal(middle(deltas, density, outliers).numpy(), expected)


def test_breadcrumbs_are_chosen_in_each_tensor_of_each_task():
    deltas = {"small": [[1.0, 2], [4, 3]], "large": [[100.0, 200], [0.1, 0.2]]}
    found = merge("breadcrumbs", vectors(**deltas), (), density=0.5, outliers=0.0, scale=1.0).merged
    assert {name: value.tolist() for name, value in found.items()} == {"small": [4, 2], "large": [0, 200.2]}


def test_one_entry_at_least_is_kept():
    deltas = torch.tensor([[3.0], [-2.0]]).double()
    assert middle(deltas, 0.15, 0.1).tolist() == deltas.tolist()
    assert middle(drawn(2, 8), 0.15, 0.14).count_nonzero() == 2


def test_outliers_are_fewer_than_what_is_looked_at():
    with pytest.raises(InputError, match=r"outliers: expected a number in \[0, density = 0.1\)"):
        merge("breadcrumbs", vectors(w=[[1.0]]), (), density=0.1, outliers=0.1)


# DELLA


def test_the_larger_an_entry_is_in_its_row_the_likelier_it_is_kept():
    deltas = torch.tensor([[[1.0, -3, 2], [-30, 20, 10]]]).double()
    assert_near(keep_probabilities(deltas, 0.3, 0.2), double([[[0.6, 0.8, 0.7], [0.8, 0.7, 0.6]]]))
    assert_near(keep_probabilities(deltas[:, 0], 0.3, 0.2), double([[0.6, 0.8, 0.7]]))
    assert_near(keep_probabilities(deltas[:, 0, :1], 0.3, 0.2), double([[0.7]]))
    folded = drawn(2, 3, 2, 4)
    assert_near(
        keep_probabilities(folded, 0.5, 0.4), keep_probabilities(folded.view(2, 3, 8), 0.5, 0.4).view(2, 3, 2, 4)
    )
    assert_near(keep_probabilities(folded, 0.5, 0.4).mean(dim=(0, 2, 3)), torch.full((3,), 0.5))


def biased(deltas, drop_rate, window, generators):
    """One factor for all entries, as if all were dropped alike."""
    kept = magnitude_sampled(deltas, drop_rate, window, generators) != 0
    return deltas * kept / (1 - drop_rate)


def deviations(sampled, repeats=1500):
    """How many standard errors the mean over draws is from each entry of a task vector."""
    deltas = torch.tensor([[4.0, -1.0, 0.5, 2.0]]).double()
    draws = torch.stack([sampled(deltas, 0.5, 0.6, task_generators(["task"], seed))[0] for seed in range(repeats)])
    return (draws.mean(dim=0) - deltas[0]).abs() / (draws.std(dim=0) / math.sqrt(repeats))


def test_sampling_by_magnitude_is_right_on_average():
    assert bool((deviations(magnitude_sampled) < 4).all())
    assert bool((deviations(biased) > 6).any()), "the factor is each entry's own"


def test_entries_are_dropped_as_often_as_their_probability_says():
    deltas = drawn(1, 200, 50)
    kept = magnitude_sampled(deltas, 0.4, 0.5, task_generators(["task"], 0)) != 0
    sizes = deltas.abs().argsort(dim=-1).argsort(dim=-1)
    for rank in (0, 24, 49):
        share = kept[sizes == rank].double().mean()
        expected = 0.6 + 0.5 * (rank / 49 - 0.5)
        assert abs(float(share) - expected) < 4 * math.sqrt(expected * (1 - expected) / 200)


def test_della_elects_signs_as_ties_does():
    tv = vectors(w=[[4.0, -1.0, 0.5], [2.0, 3.0, -1.0]])
    assert (
        merge("della", tv, (), drop_rate=0.0, scale=0.4).merged["w"].tolist()
        == merge("ties", tv, (), density=1.0, scale=0.4).merged["w"].tolist()
    )
    names, deltas = list(tv.names), tv.stacked["w"]
    kept = magnitude_sampled(deltas, 0.3, 0.14, task_generators(names, 7))
    elected = kept.sum(dim=0).sign()
    expected = [np.mean([float(v) for v in kept[:, i] if v != 0 and v.sign() == elected[i]] or [0.0]) for i in range(3)]
    assert merge("della", tv, (), seed=7, scale=1.0).merged["w"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("drop_rate", "window"), [(0.3, 0.7), (0.9, 0.3), (0.5, -0.1)])
def test_a_window_that_is_no_probability_is_refused(drop_rate, window):
    with pytest.raises(InputError, match="window: expected a number in"):
        merge("della", vectors(w=[[1.0]]), (), drop_rate=drop_rate, window=window)


# SCE


def test_sce_by_hand():
    """Variances 9, 1, 0, 4; half of the three that are not 0, rounded down, is the first place alone."""
    tv = vectors(w=[[6.0, 1, 2, -2], [0.0, 3, 2, 2]])
    assert merge("sce", tv, (), density=0.5).merged["w"].tolist() == [6, 0, 0, 0]
    # two places: η of [6, -2] and [0, 2] are 40 and 4 parts of 44; the sum 0 of the last place elects no sign
    assert merge("sce", tv, (), density=0.7).merged["w"].tolist() == [6, 0, 0, 0]
    # all: η are 45 and 17 parts of 62
    found = merge("sce", tv, (), density=1.0).merged["w"].tolist()
    assert found == pytest.approx([6, (45 + 51) / 62, 2, 0])


def by_loops(deltas, density):
    """SCE place by place, of τ [T, n]."""
    tasks, count = deltas.shape
    variances = [np.mean((deltas[:, i] - deltas[:, i].mean()) ** 2) for i in range(count)]
    most = sorted(range(count), key=lambda i: -variances[i])[: int(density * sum(v > 0 for v in variances))]
    chosen = set(range(count)) if density == 1 else set(most)
    weights = [sum(deltas[t, i] ** 2 for i in chosen) for t in range(tasks)]
    result = np.zeros(count)
    for i in chosen:
        total = sum(deltas[:, i])
        agree = [t for t in range(tasks) if deltas[t, i] * total > 0]
        if agree:
            result[i] = sum(weights[t] * deltas[t, i] for t in agree) / sum(weights[t] for t in agree)
    return result


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_sce_against_loops(density):
    deltas = drawn(4, 60) * torch.tensor([[1.0], [3], [0.5], [2]]).double()
    assert_near(select_calculate_erase(deltas, density), torch.as_tensor(by_loops(deltas.numpy(), density)))


def released(deltas, density):
    """Selected entries count for the weights alone."""
    variance = deltas.var(dim=0, correction=0)
    mask = variance >= variance.sort(descending=True).values[int(density * len(variance)) - 1]
    weights = (deltas * mask).square().sum(dim=1, keepdim=True) * (deltas.sign() == deltas.sum(dim=0).sign())
    return (weights * deltas).sum(dim=0) / weights.sum(dim=0)


def test_equal_weights_and_unselected_entries_are_other_merges():
    deltas = drawn(4, 60) * torch.tensor([[1.0], [3], [0.5], [2]]).double()
    expected = torch.as_tensor(by_loops(deltas.numpy(), 0.5))
    assert float((tensorwise.disjoint_mean(deltas) - expected).abs().max()) > 0.1
    assert float((released(deltas, 0.5) - expected).abs().max()) > 0.1


def test_places_where_all_task_vectors_agree_are_not_selected():
    assert merge("sce", vectors(w=[[1.0, 2], [1.0, 2]]), (), density=0.5).merged["w"].tolist() == [0, 0]
