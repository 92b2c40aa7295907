"""The divergence ladder of Theorem 3."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from bounds.distillation import bretagnolle_huber, error_by_teacher, kl, ladder, pinsker, total_variation
from bounds.types import Estimate, InputError


def random_scores(seed, sizes=((30, 4), (20, 7)), scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*s, generator=generator, dtype=torch.float64) for s in sizes]


def test_total_variation_and_kl_against_torch():
    p, q = random_scores(0)[0], random_scores(1)[0]
    expected = (p.softmax(-1) - q.softmax(-1)).clamp_min(0.0).sum(-1)  # the other form of TV
    torch.testing.assert_close(total_variation(p, q), expected)
    for temperature in (1.0, 2.0):
        want = kl_divergence(Categorical(logits=p / temperature), Categorical(logits=q / temperature))
        torch.testing.assert_close(kl(p, q, temperature), want)


def test_extremes_stay_finite():
    p, q = torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])
    assert float(kl(p, q)) == pytest.approx(400.0)
    assert float(total_variation(p, q)) == 1.0
    assert float(kl(p, p)) == 0.0


def test_rungs_of_two_points_and_their_slopes():
    for curve in (pinsker, bretagnolle_huber):
        for k in (0.01, 0.7, 9.0):
            slope = (curve(Estimate(k + 1e-6), 3.0).value - curve(Estimate(k - 1e-6), 3.0).value) / 2e-6
            assert curve(Estimate(k, 0.2), 3.0).stderr == pytest.approx(0.2 * slope, rel=1e-4)
        assert curve(Estimate(0.0)) == Estimate(0.0)
    assert pinsker(Estimate(0.5)).value == pytest.approx(0.5)
    assert bretagnolle_huber(Estimate(math.log(2))).value == pytest.approx(math.sqrt(0.5))
    assert bretagnolle_huber(Estimate(1e6), 3.0).value == 3.0


def test_ladder_by_hand():
    teachers, students, alpha = random_scores(2), random_scores(3), (0.3, 0.7)
    made = ladder(teachers, students, alpha, cost_bound=2.0, surrogate_temperature=3.0)
    tv = [float(total_variation(p, q).mean()) for p, q in zip(teachers, students, strict=True)]
    divergences = [float(kl(p, q).mean()) for p, q in zip(teachers, students, strict=True)]
    assert [e.value for e in made.total_variation.per_task] == pytest.approx([2 * v for v in tv])
    assert made.total_variation.total.value == pytest.approx(2 * (0.3 * tv[0] + 0.7 * tv[1]))
    mean = 0.3 * divergences[0] + 0.7 * divergences[1]
    assert made.divergence.total.value == pytest.approx(mean)
    assert made.pinsker.total.value == pytest.approx(2 * math.sqrt(mean / 2))
    assert made.bretagnolle_huber.total.value == pytest.approx(2 * math.sqrt(1 - math.exp(-mean)))
    assert [e.value for e in made.pinsker.per_task] == pytest.approx([2 * math.sqrt(k / 2) for k in divergences])
    assert made.minimum.total.value == min(made.pinsker.total.value, made.bretagnolle_huber.total.value)
    hot = [float(kl(p, q, 3.0).mean()) for p, q in zip(teachers, students, strict=True)]
    assert made.surrogate.total.value == pytest.approx(0.3 * hot[0] + 0.7 * hot[1])
    apart = [float((p.argmax(-1) != q.argmax(-1)).double().mean()) for p, q in zip(teachers, students, strict=True)]
    assert made.disagreement.total.value == pytest.approx(0.3 * apart[0] + 0.7 * apart[1])
    assert made.rungs[0] is made.total_variation


def test_equal_models_give_a_ladder_of_zeros():
    scores = random_scores(4)
    made = ladder(scores, scores, (0.5, 0.5))
    assert all(rung.total.value == 0.0 for rung in (*made.rungs, made.divergence, made.disagreement))


def test_total_variation_standard_error():
    teachers, students = random_scores(5), random_scores(6)
    values = [total_variation(p, q) for p, q in zip(teachers, students, strict=True)]
    expected = math.sqrt(sum((0.5 * float(v.std()) / math.sqrt(len(v))) ** 2 for v in values))
    assert ladder(teachers, students, (0.5, 0.5)).total_variation.total.stderr == pytest.approx(expected)


def test_refusals():
    p, q = random_scores(7)
    for first, second in ((p, q), (p[0], p[0]), (p[:0], p[:0]), (p * math.nan, p)):
        with pytest.raises(InputError):
            total_variation(first, second)
    with pytest.raises(InputError):
        kl(p, p, 0.0)
    for bad in (([p], [p, q], (1.0,)), ([], [], ()), ([p], [p], (0.5,))):
        with pytest.raises(InputError):
            ladder(*bad)
    with pytest.raises(InputError):
        ladder([p], [p], (1.0,), cost_bound=0.0)


def test_the_teachers_doubt_is_the_error_where_labels_follow_the_teacher():
    """By enumeration over all labels, and at scores where 1 - exp(log p) would be exactly 0."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
    q = torch.tensor([[0.0, 5.0, 1.0], [0.0, 1.0, 0.0]])
    error = [
        sum(float(row[y]) for y in range(3) if y != int(scores.argmax())) for row, scores in zip(p, q, strict=True)
    ]
    assert error_by_teacher(p.log(), q).tolist() == pytest.approx(error)
    sure = error_by_teacher(torch.tensor([[40.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert float(sure) == pytest.approx(math.exp(-40.0), rel=1e-6)
    with pytest.raises(InputError, match="scores"):
        error_by_teacher(p.log(), q[:, :2])
