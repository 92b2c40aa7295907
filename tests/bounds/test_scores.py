"""The gate of scores, and the softmax figures against their definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from bounds import scores
from bounds.certificates import BoundedSample, weighted_mean
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


def test_smoothed_cross_entropy_is_bounded_and_keeps_the_argmax():
    """(19): q = (1 - eps) p + eps/C, written out; the loss never exceeds ln(C/eps), and raw cross-entropy does."""
    given = torch.tensor([[0.0, 1.0, -2.0], [200.0, -200.0, 0.0], [3.0, 3.0, 3.0]])
    labels, eps = torch.tensor([2, 1, 0]), 0.02
    q = (1 - eps) * given.double().softmax(-1) + eps / 3
    losses = scores.smoothed_losses(given, eps)
    torch.testing.assert_close(losses, -q.log(), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(scores.smoothed_cross_entropy(given, labels, eps), -q.log()[range(3), labels])
    largest = scores.largest_smoothed_loss(3, eps)
    assert largest == pytest.approx(math.log(150.0))
    assert float(losses.min()) >= 0.0
    assert float(losses.max()) <= largest + 1e-12
    assert float(losses.max()) == pytest.approx(largest)  # the limit is attained
    assert torch.equal(q[:2].argmax(-1), given[:2].argmax(-1))
    raw = scores.cross_entropy(given, labels)
    BoundedSample(values=scores.smoothed_cross_entropy(given, labels, eps), upper=largest)
    with pytest.raises(InputError, match="clip or smooth"):
        BoundedSample(values=raw, upper=largest)
    stacked = scores.smoothed_cross_entropy(torch.stack([given, 2 * given]), labels, eps)
    torch.testing.assert_close(stacked[0], scores.smoothed_cross_entropy(given, labels, eps))
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="smoothed"):
            scores.smoothed_losses(given, bad)


def test_raw_cross_entropy_in_place_of_the_smoothed_one_misses():
    """A loss of 400 that one example in 200 has: clipped to the range by hand, its mean is not what is certified."""
    rare, n = 1 / 200, 100
    truth = rare * 400.0
    seen = torch.zeros(n, dtype=torch.float64)  # no such example among them, with probability .6
    limit = weighted_mean(
        [BoundedSample(values=seen, upper=scores.largest_smoothed_loss(10, 0.02))], (1.0,), 0.05
    ).value
    assert (1 - rare) ** n > 0.6
    assert limit < truth
    smooth = rare * scores.largest_smoothed_loss(10, 0.02)
    assert limit > smooth


def test_scores_at_every_position_have_a_gate_of_their_own():
    given = torch.zeros(2, 3, 4)
    assert scores.check_scores(given, 2, 4, positions=3) is given
    for examples, classes, positions in ((3, 4, 3), (2, 5, 3), (2, 4, 4)):
        with pytest.raises(InputError):
            scores.check_scores(given, examples, classes, positions=positions)
    with pytest.raises(InputError, match=r"float tensor \[2, 3, C\]"):
        scores.check_scores(given[0], 2, positions=3)
    broken = torch.zeros(5, 4)
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match=r"NaN or infinity for 1 of 5 examples \(first: 2\)"):
        scores.check_finite(broken)
