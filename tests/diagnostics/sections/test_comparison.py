"""Several merges: rank agreement beside chance, differences per task, coefficients that fit every merge."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import kendalltau

from diagnostics.sections import comparison
from diagnostics.sections.comparison import CoefficientFit, rank_agreement
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge, merged
from merging.suites import toy

TINY = Settings(held_out=8, kernel=4, train=8, draws=2, weight_draws=1, points=3, resamples=4)


def inversions(n):
    """How many orders of n values have k inversions (Mahonian numbers), by their recurrence."""
    counts = Counter({0: 1})
    for size in range(2, n + 1):
        counts = Counter({k: sum(counts[k - j] for j in range(size)) for k in range(size * (size - 1) // 2 + 1)})
    return counts


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_chance_is_that_of_all_orders(n):
    taus = sorted(t for k, c in inversions(n).items() for t in [1 - 4 * k / (n * (n - 1))] * c)
    tail = int(0.025 * math.factorial(n))
    first = list(range(n))
    for second in itertools.islice(itertools.permutations(first), 0, None, 7):
        found = rank_agreement(first, second)
        assert found is not None
        assert found.chance == pytest.approx((taus[tail], taus[-1 - tail]))
        assert found.kendall_tau == pytest.approx(kendalltau(first, second).statistic)  # pyright: ignore
        expected = kendalltau(first, second, alternative="greater", method="exact").pvalue  # pyright: ignore
        assert found.p_value == pytest.approx(expected)


def test_three_merges_prove_nothing_and_two_have_no_agreement():
    found = rank_agreement([1, 2, 3], [10, 20, 30])
    assert found is not None
    assert (found.kendall_tau, found.chance, found.p_value) == (1.0, (-1.0, 1.0), pytest.approx(1 / 6))
    assert rank_agreement([1, 2], [1, 2]) is None
    assert rank_agreement([1, 1, 1], [1, 2, 3]) is None


def test_ties_count_half_and_many_merges_are_shuffled():
    found = rank_agreement([1, 1, 2, 3], [1, 2, 3, 4])
    assert found is not None
    assert found.kendall_tau == pytest.approx(kendalltau([1, 1, 2, 3], [1, 2, 3, 4]).statistic)  # pyright: ignore
    values = list(range(12))
    many = rank_agreement(values, values)
    assert many == rank_agreement(values, values)
    assert many is not None
    assert many.p_value == 0
    assert many.chance[1] == pytest.approx(1.96 * math.sqrt(2 * 29 / (9 * 12 * 11)), abs=0.06)  # Kendall's variance


@pytest.fixture(scope="module")
def compared():
    suite = toy.build(overlap=0.3)
    vectors = suite.task_vectors
    names = {"all": list(vectors.base)}
    first, second = (torch.tensor([[0.2], [0.5], [0.9]]), torch.tensor([[0.3], [0.3], [0.3]]))
    made = {
        label: merge("task_arithmetic", vectors, suite.tasks, suite="toy", sources=suite.sources, scale=0.3)
        for label in ("first", "second", "bent")
    }
    points = {"first": merged(vectors, first, names), "second": merged(vectors, second, names)}
    noise = torch.Generator().manual_seed(0)
    points["bent"] = {
        k: v + 0.1 * torch.randn(v.shape, generator=noise, dtype=v.dtype) for k, v in points["second"].items()
    }
    subjects = [
        Subject(label, f"{label}.pt", type(m)(**{**vars(m), "merged": points[label]})) for label, m in made.items()
    ]
    space = Workspace(subjects, lambda: suite, TINY, Cache(None))
    return space, suite, points, comparison.compute(space)


def test_fits_find_the_coefficients_and_what_they_leave(compared):
    _, suite, points, found = compared
    first, second, bent = found.coefficients
    assert first.values == pytest.approx((0.2, 0.5, 0.9), abs=1e-6)
    assert second.values == pytest.approx((0.3, 0.3, 0.3), abs=1e-6)
    assert first.share == pytest.approx(1, abs=1e-9)
    columns = torch.stack([torch.cat([d[k].flatten() for k in d]) for d in suite.task_vectors.deltas], 1).double()
    d = torch.cat([(points["bent"][k] - v).flatten() for k, v in suite.task_vectors.base.items()]).double()
    expected = torch.linalg.lstsq(columns, d).solution
    assert bent.values == pytest.approx(expected.tolist(), abs=1e-6)
    assert bent.share == pytest.approx(float((columns @ expected).square().sum() / d.square().sum()), abs=1e-6)
    assert bent.share < 0.9
    assert isinstance(bent, CoefficientFit)


def test_differences_per_task_are_those_of_the_losses(compared):
    _, suite, points, found = compared
    for row in found.tasks:
        (task,) = (t for t in suite.tasks if t.name == row.task)
        losses = [
            torch.nn.functional.cross_entropy(
                task.forward(points[label], task.test.inputs), task.test.labels, reduction="none"
            ).double()
            for label in ("first", row.merge)
        ]
        change = losses[1] - losses[0]
        assert row.risk.value == pytest.approx(float(change.mean()), abs=1e-6)
        assert row.risk.stderr == pytest.approx(float(change.std() / len(change) ** 0.5), abs=1e-6)
    assert len(found.tasks) == 2 * 3
    most = {t.name: max(r.risk.value for r in found.tasks if r.task == t.name) for t in suite.tasks}
    order = comparison.worst_first(found)
    assert [most[name] for name in order] == sorted(most.values(), reverse=True)


def test_three_are_ranked_with_their_agreement(compared):
    _, _, _, found = compared
    assert all(r.agreement is not None and r.agreement.chance == (-1.0, 1.0) for r in found.rankings)
    table = comparison.table(found)
    assert "circular" in str(table.caption)
    assert "by chance" in str(table.caption)
