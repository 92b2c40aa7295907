"""Stability of merges: worlds in which every sample is run through, and wrong versions that they catch."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from bounds.stability import least_stability, merged_stability, score_stability, sgd_stability, stable_risk
from bounds.types import Estimate, InputError

POINTS = torch.tensor([[1.0, 0.4], [0.9, 0.5], [-1.0, 0.3], [0.2, -1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0])
"""Four equally likely examples; the first two lie close and contradict each other."""
OTHER = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)
"""The other expert's task vector, which these examples say nothing about."""
SAMPLES = list(itertools.product(range(4), repeat=3))
RATE = 0.8


def linear(weights, x):
    return x @ weights.T


def curved(weights, x):
    return torch.tanh(3.0 * x @ weights.T) * 2.0 + (x @ weights.T).square()


@cache
def trained(network, rows, steps=12):
    """Full-batch gradient descent on the mean cross-entropy of these examples, whatever their order."""
    if steps == 0:
        return torch.full((2, 2), 0.05, dtype=torch.float64)
    weights = trained(network, rows, steps - 1).clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(network(weights, POINTS[list(rows)]), LABELS[list(rows)])
    (slope,) = torch.autograd.grad(loss, weights)
    return (weights - RATE * slope).detach()


def whole(vector, scale=1.0):
    return scale * (vector + OTHER)


def trimmed(vector, scale=1.0):
    """Only the larger half of the entries: no linear merge."""
    kept = vector.abs() >= vector.abs().flatten().median()
    return scale * (vector * kept + OTHER)


def world(network, merge, scale=1.0):
    """Mean training risk, mean risk and ε² over all samples of three examples and all replacements: exact."""
    merges = {rows: merge(trained(network, rows), scale) for rows in SAMPLES}
    losses = {
        rows: torch.nn.functional.cross_entropy(network(weights, POINTS), LABELS, reduction="none")
        for rows, weights in merges.items()
    }
    before, after = [], []
    for rows, index, new in itertools.product(SAMPLES, range(3), range(4)):
        other = (*rows[:index], new, *rows[index + 1 :])
        at = POINTS[rows[index]][None]
        before.append(network(merges[rows], at))
        after.append(network(merges[other], at))
    training = sum(float(losses[rows][list(rows)].mean()) for rows in SAMPLES) / len(SAMPLES)
    risk = sum(float(values.mean()) for values in losses.values()) / len(SAMPLES)
    return training, risk, score_stability(torch.cat(before), torch.cat(after))


@pytest.mark.parametrize("network", [linear, curved])
@pytest.mark.parametrize("merge", [whole, trimmed])
def test_the_mean_risk_is_below_the_limit_for_any_network_and_any_merge(network, merge):
    training, risk, stability = world(network, merge)
    limit = stable_risk(Estimate(training), replace(stability, stderr=0.0))
    assert training < risk < limit.value
    assert limit.status == "estimated"
    assert least_stability(Estimate(training), Estimate(risk)).value < stability.value
    if network is linear:  # tight enough here that half of ε is too little
        assert stable_risk(Estimate(training), Estimate(stability.value / 4.0)).value < risk


def test_in_a_linear_network_a_coefficient_scales_the_movement_of_the_scores():
    """ε² at λ is λ² times that of the expert, while the training risk grows as λ falls: the two pull apart."""
    found = {scale: world(linear, whole, scale) for scale in (1.0, 0.5, 0.25)}
    for scale, (_, _, stability) in found.items():
        assert stability.value == pytest.approx(scale**2 * found[1.0][2].value, rel=1e-12)
    stated = {1.0: (0.21, 0.53, 0.82), 0.5: (0.34, 0.52, 0.65), 0.25: (0.48, 0.57, 0.64)}  # docs/theory.md, section 17
    for scale, (training, risk, stability) in found.items():
        limit = stable_risk(Estimate(training), replace(stability, stderr=0.0)).value
        assert (training, risk, limit) == pytest.approx(stated[scale], abs=0.005)
        assert stable_risk(Estimate(training), Estimate(stability.value / 4.0)).value < risk


def test_a_mean_is_covered_and_wrong_factors_are_not():
    """Squared error of aȳ, y of variance 1: all in closed form, and the limit is loose by √2 in ε only."""
    n, c, coefficient = 50, 0.8, 0.5
    a = coefficient * c
    training, risk = 0.5 * (a**2 / n - 2.0 * a / n + 1.0), 0.5 * (a**2 / n + 1.0)
    expert = Estimate(2.0 * c**2 / n**2)
    merge = merged_stability([expert], [coefficient])
    assert merge.value == pytest.approx(2.0 * a**2 / n**2)
    assert stable_risk(Estimate(training), merge, gamma=1.0).value > risk
    wrong = {
        "half of ε": merge.value / 4.0,
        "λ² on ε": expert.value * coefficient**4,
        "movement of the mean in place of a replacement": merge.value / n,
    }
    for name, value in wrong.items():
        assert stable_risk(Estimate(training), Estimate(value), gamma=1.0).value < risk, name


def test_a_linear_merge_moves_by_its_coefficients_in_every_block():
    """Weights of all samples, one block per row: the merge's own movement, counted, is the experts' times λ²."""
    coefficients = torch.tensor([0.7, -0.2], dtype=torch.float64)
    weights = {rows: trained(curved, rows) for rows in SAMPLES}
    moved, merged = [], []
    for rows, index, new in itertools.product(SAMPLES, range(3), range(4)):
        other = weights[(*rows[:index], new, *rows[index + 1 :])]
        moved.append((other - weights[rows]).square().sum(1))
        merge, again = (coefficients[:, None] * vector + OTHER for vector in (weights[rows], other))
        merged.append((again - merge).square().sum())
    blocks = [Estimate.of_mean(column) for column in torch.stack(moved).T]
    found = merged_stability(blocks, coefficients.tolist())
    assert found.value == pytest.approx(float(torch.stack(merged).mean()), rel=1e-12)
    assert found.stderr == pytest.approx(0.49 * blocks[0].stderr + 0.04 * blocks[1].stderr)
    assert found.status == "estimated"


def test_a_rescaled_random_mask_is_less_stable_and_a_plain_one_is_more():
    """Every mask of three entries, each entry kept with probability 1/4: the mean of ε² over masks."""
    moved = [Estimate(0.3), Estimate(0.5), Estimate(0.1)]
    means = {1.0: 0.0, 4.0: 0.0}
    for mask, scale in itertools.product(itertools.product((0, 1), repeat=3), means):
        chance = math.prod(0.25 if kept else 0.75 for kept in mask)
        means[scale] += chance * merged_stability(moved, [scale * kept for kept in mask]).value
    assert means[1.0] == pytest.approx(0.25 * 0.9)
    assert means[4.0] == pytest.approx(0.9 / 0.25)


def hits(batches, etas, batch):
    """Squared movement of SGD on ⟨a, θ⟩ when example 0 is replaced by its opposite, with ‖a‖ = 1.5."""
    slopes = torch.tensor([1.5, -0.3, 0.8], dtype=torch.float64)
    opposite = slopes.clone()
    opposite[0] = -1.5
    theta = torch.zeros(2, dtype=torch.float64)
    for eta, rows in zip(etas, batches, strict=True):
        theta = theta - eta * torch.stack([values[list(rows)].sum() / batch for values in (slopes, opposite)])
    return float((theta[1] - theta[0]).square())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_stability_of_sgd_is_an_equality_for_linear_losses(batch):
    etas = [0.5, 0.2, 0.1]
    drawn = list(itertools.combinations(range(3), batch))
    runs = [hits(batches, etas, batch) for batches in itertools.product(drawn, repeat=3)]
    measured = sum(runs) / len(runs)
    found = sgd_stability(etas, batch=batch, examples=3, gradient=1.5, smoothness=1.0)
    assert found.value == pytest.approx(measured, rel=1e-12)
    assert found.status == "assumed"
    total, squares, p = sum(etas), sum(eta**2 for eta in etas), batch / 3
    if batch < 3:
        assert (3.0 / batch) ** 2 * p**2 * total**2 < measured  # as if every example were met on average
    assert (1.5 / batch) ** 2 * (p**2 * total**2 + p * (1 - p) * squares) < measured  # one of the two gradients


def test_shuffled_epochs_move_no_more_than_batches_drawn_anew():
    etas = [0.5, 0.2, 0.1]
    runs = [hits([(row,) for row in order], etas, 1) for order in itertools.permutations(range(3))]
    limit = sgd_stability(etas, batch=1, examples=3, gradient=1.5, smoothness=1.0).value
    assert sum(runs) / len(runs) < limit


def test_stability_of_sgd_covers_a_convex_loss():
    """Logistic regression by full batches: every sample, every replacement, gradients measured on the way."""
    moved = [
        (trained(linear, (*rows[:index], new, *rows[index + 1 :])) - trained(linear, rows)).square().sum()
        for rows, index, new in itertools.product(SAMPLES, range(3), range(4))
    ]
    largest = 0.0
    for rows, done in itertools.product(SAMPLES, range(12)):
        slopes = linear(trained(linear, rows, done), POINTS).softmax(1) - torch.eye(2).double()[LABELS]
        largest = max(largest, float((slopes.norm(dim=1) * POINTS.norm(dim=1)).max()))
    smoothness = 0.5 * float(POINTS.square().sum(1).max())
    limit = sgd_stability([RATE] * 12, batch=3, examples=3, gradient=largest, smoothness=smoothness)
    assert 0.0 < float(torch.stack(moved).mean()) < limit.value


def test_cross_entropy_does_not_see_a_constant():
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    moved = scores + torch.tensor([[5.0], [-2.0]]) + torch.tensor([[3.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    assert score_stability(scores, moved).value == pytest.approx(9.0)
    assert score_stability(scores, moved, centred=False).value == pytest.approx((64.0 + 4.0 + 25.0 + 12.0) / 2)


def test_the_least_stability_is_where_the_limit_meets_the_risk():
    training, moved = Estimate(0.3, 0.01, 100), Estimate(0.08, 0.02, 40)
    limit = stable_risk(training, moved)
    assert least_stability(training, limit).value == pytest.approx(0.08)
    assert least_stability(limit, training).value == 0.0
    assert stable_risk(training, Estimate(0.0)).value == pytest.approx(0.3)


@pytest.mark.parametrize("function", [stable_risk, least_stability])
def test_standard_errors_are_slopes_times_those_of_the_inputs(function):
    first, second, step = Estimate(0.3, 0.01, 100), Estimate(0.5, 0.02, 40), 1e-6
    slopes = [
        (function(replace(first, value=0.3 + step), second).value - function(first, second).value) / step,
        (function(first, replace(second, value=0.5 + step)).value - function(first, second).value) / step,
    ]
    expected = abs(slopes[0]) * 0.01 + abs(slopes[1]) * 0.02
    assert function(first, second).stderr == pytest.approx(expected, rel=1e-4)
    assert function(first, replace(second, status="assumed")).status == "assumed"
    assert math.isinf(stable_risk(Estimate(0.0, 0.1, 5), second).stderr)
    assert least_stability(Estimate(0.0), Estimate(0.0)) == Estimate(0.0, status="estimated")


@pytest.mark.parametrize(
    "call",
    [
        lambda: score_stability(torch.zeros(2, 3), torch.zeros(3, 3)),
        lambda: score_stability(torch.zeros(3), torch.zeros(3)),
        lambda: score_stability(torch.zeros(1, 2), torch.full((1, 2), math.nan)),
        lambda: merged_stability([], []),
        lambda: merged_stability([Estimate(1.0)], [1.0, 2.0]),
        lambda: merged_stability([Estimate(-1.0)], [1.0]),
        lambda: merged_stability([Estimate(1.0)], [math.inf]),
        lambda: sgd_stability([], batch=1, examples=2, gradient=1.0, smoothness=1.0),
        lambda: sgd_stability([2.1], batch=1, examples=2, gradient=1.0, smoothness=1.0),
        lambda: sgd_stability([-0.1], batch=1, examples=2, gradient=1.0, smoothness=1.0),
        lambda: sgd_stability([0.1], batch=3, examples=2, gradient=1.0, smoothness=1.0),
        lambda: sgd_stability([0.1], batch=1, examples=2, gradient=0.0, smoothness=1.0),
        lambda: stable_risk(Estimate(-0.1), Estimate(1.0)),
        lambda: stable_risk(Estimate(0.1), Estimate(1.0), gamma=0.0),
        lambda: least_stability(Estimate(0.1), Estimate(math.inf)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()
