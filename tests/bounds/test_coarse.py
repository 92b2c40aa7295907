"""Coarsened distributions: against sums over all classes, one-sided in k, and stable where the rest is tiny."""

import math

import pytest
import torch

from bounds.coarse import coarsened, likeliest
from bounds.scores import kl, log_probabilities, mean_kl
from bounds.types import InputError

V = 13


def scores(seed=0, shape=(4, 5), spread=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, V, generator=generator, dtype=torch.float64)).to(dtype)


def by_hand(row, classes, temperature):
    """Log-probabilities of some classes and the rest, by Python's own sums of one row."""
    shares = [math.exp(float(s) / temperature) for s in row]
    total = math.fsum(shares)
    chosen = [math.log(shares[c] / total) for c in classes]
    rest = math.fsum(share for c, share in enumerate(shares) if c not in classes)
    return [*chosen, math.log(rest / total)]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_events_are_the_likeliest_classes_and_the_sum_of_the_rest(k, temperature):
    teacher, student = scores(), scores(1)
    log_p, classes = likeliest(teacher, k, temperature)
    assert classes is not None
    assert log_p.shape == (4, 5, k + 1)
    events = coarsened(student, classes, temperature)
    for place in [(0, 0), (3, 4)]:
        chosen = sorted(range(V), key=lambda c: -float(teacher[place][c]))[:k]
        assert classes[place].tolist() == chosen
        assert log_p[place].tolist() == pytest.approx(by_hand(teacher[place], chosen, temperature), abs=1e-12)
        assert events[place].tolist() == pytest.approx(by_hand(student[place], chosen, temperature), abs=1e-12)


@pytest.mark.parametrize("k", [None, V, V + 3])
def test_with_all_classes_nothing_is_lost(k):
    log_p, classes = likeliest(scores(), k, 1.5)
    assert classes is None
    assert torch.equal(log_p, log_probabilities(scores(), 1.5))
    assert torch.equal(coarsened(scores(1), None, 1.5), log_probabilities(scores(1), 1.5))


def divergences(k, direction):
    log_p, classes = likeliest(scores(), k)
    log_q = coarsened(scores(1), classes)
    return kl(log_p, log_q) if direction == "forwards" else kl(log_q, log_p)


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
def test_the_divergence_never_exceeds_the_exact_one_and_rises_with_k_to_it(direction):
    """The data processing inequality, position by position."""
    found = torch.stack([divergences(k, direction) for k in range(1, V + 1)])
    assert bool((found.diff(dim=0) >= -1e-12).all())
    assert bool((found[0] < found[-1] - 1e-3).all()), "coarse events do lose something"
    exact = divergences(None, direction)
    assert torch.allclose(found[-1], exact, atol=1e-12)
    assert torch.allclose(found[-2], exact, atol=1e-12), "with one class left the rest is that class"


def test_gradients_are_those_of_the_divergence_of_events_written_out():
    log_p, classes = likeliest(scores().flatten(0, 1), 3)
    assert classes is not None
    ours = scores(1).flatten(0, 1).requires_grad_()
    mean_kl(log_p, coarsened(ours, classes)).backward()
    dense = scores(1).flatten(0, 1).requires_grad_()
    q, inside = dense.softmax(dim=-1), torch.zeros(20, V, dtype=torch.bool).scatter(1, classes.long(), True)
    events = torch.cat([q.gather(1, classes.long()), (q * ~inside).sum(dim=1, keepdim=True)], dim=1)
    ((log_p.exp() * (log_p - events.log())).sum() / 20).backward()
    assert ours.grad is not None
    assert dense.grad is not None
    assert torch.allclose(ours.grad, dense.grad, atol=1e-12)


def test_a_rest_of_almost_nothing_keeps_its_digits_and_its_gradient():
    """In float32, 1 - Σ of what is likely is rounding, or below 0: the mutant that takes it so is seen."""
    row = torch.tensor([[30.0, 29.0, 0.0, 1.0, -2.0, 0.5]], dtype=torch.float32)
    classes = torch.tensor([[0, 1]], dtype=torch.int32)
    expected = by_hand(row[0], [0, 1], 1.0)
    leaf = row.clone().requires_grad_()
    events = coarsened(leaf, classes)
    assert events[0].tolist() == pytest.approx(expected, rel=1e-6)
    events[0, 2].backward()
    assert leaf.grad is not None
    shares = row[0, 2:].double().softmax(dim=0)
    assert leaf.grad[0, 2:].tolist() == pytest.approx(shares.tolist(), rel=1e-5)
    wrong = torch.log1p(-row.log_softmax(dim=-1)[0, :2].exp().sum())
    assert not math.isclose(float(wrong), expected[2], rel_tol=1e-2)


def test_no_classes_at_all_are_refused():
    with pytest.raises(InputError, match="classes that are kept: expected at least 1, or None for all; got 0"):
        likeliest(scores(), 0)
