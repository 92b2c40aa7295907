"""The gate of scores, and the softmax figures against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from bounds import scores
from bounds.types import InputError

NAN = float("nan")


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_counted_by_example(bad):
    given = rows(5, 3)
    given[1, 2] = given[3, 0] = given[3, 1] = bad
    with pytest.raises(InputError, match=r"mine: expected finite numbers; got .* 2 of 5 examples \(first: 1\)"):
        scores.check_scores(given, 5, 3, "mine")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (rows(4, 3), "one for each class name; got 3"),
        (rows(3, 2), r"float tensor \[4, 2\]"),
        (rows(4, 2, 1), r"float tensor \[4, 2\]"),
        (torch.ones(4, 2, dtype=torch.long), "int64"),
    ],
)
def test_scores_of_another_shape_are_refused(given, found):
    with pytest.raises(InputError, match=found):
        scores.check_scores(given, 4, 2)


def test_constant_scores_pass_and_nothing_is_copied():
    for given in (torch.zeros(4, 2), torch.full((4, 2), 3.0).bfloat16()):
        assert scores.check_scores(given, 4, 2) is given
    assert len(scores.check_scores(rows(4, 7), 4)) == 4


def test_cross_entropy_and_its_slope():
    given, labels = rows(2, 5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.stack([F.cross_entropy(part, labels, reduction="none") for part in given])
    assert torch.equal(scores.cross_entropy(given, labels), expected)
    assert torch.equal(scores.cross_entropy(given[0], labels), expected[0])
    assert scores.mean_cross_entropy(given[0], labels) == pytest.approx(float(expected[0].mean()))
    slope = torch.func.grad(lambda s: scores.cross_entropy(s, labels).sum())(given)
    assert torch.allclose(scores.cross_entropy_slope(given, labels), slope)


def test_kl_and_its_slope_at_a_temperature():
    p, q, u = rows(6, 4, seed=1), rows(6, 4, seed=2), 1.7
    one, two = (scores.log_probabilities(s, u) for s in (p, q))
    expected = (one.exp() * (one - two)).sum(1)
    assert torch.allclose(scores.kl(one, two), expected)
    assert not torch.allclose(scores.kl(two, one), expected)
    assert float(scores.mean_kl(one, two)) == pytest.approx(float(expected.mean()))
    assert torch.allclose(scores.probabilities(p, u), one.exp())
    slope = torch.func.grad(lambda s: scores.kl(one, scores.log_probabilities(s, u)).sum())(q)
    assert torch.allclose(scores.kl_slope(one, scores.probabilities(q, u), u), slope)


def test_scores_of_any_size_give_finite_figures():
    large = torch.tensor([[2000.0, -2000.0]])
    assert torch.isfinite(scores.kl(scores.log_probabilities(large), scores.log_probabilities(-large))).all()
