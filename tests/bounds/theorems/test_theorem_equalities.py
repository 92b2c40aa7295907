"""Equalities in exactly solvable worlds: Lemma 3, (6), the identity behind Theorem 2, Theorem 3."""

import math

import numpy as np
import pytest
import torch

from bounds.distillation import ladder
from bounds.theorems import (
    AnchorStatistics,
    MergeAnchor,
    PosteriorStatistics,
    argmax_error,
    theorem1,
    theorem2,
    theorem3,
)
from bounds.types import Estimate, InputError

ALPHA, BETA = (0.5, 0.2, 0.3), (0.1, 0.6, 0.3)


def quadratic_world(seed=0, examples=6, classes=3, size=4):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(examples, classes, size)), generator.normal(size=(examples, classes))


def quadratic_risk(jacobians, targets, theta):
    return 0.5 * ((jacobians @ theta - targets) ** 2).sum(-1).mean()


def test_lemma3_is_an_equality_for_quadratic_loss():
    """gamma = 1; the 2P sigma points average a quadratic exactly, so no use of the trace formula here."""
    jacobians, targets = quadratic_world()
    mean, sigma = np.array([0.3, -0.2, 1.0, 0.5]), np.array([0.3, 0.3, 0.7, 0.7])  # two blocks
    shifts = np.sqrt(4) * np.diag(sigma)
    exact = np.mean([quadratic_risk(jacobians, targets, mean + s * d) for d in shifts for s in (1, -1)])
    kernel = [(jacobians[:, :, b] ** 2).sum((1, 2)).mean() for b in (slice(0, 2), slice(2, 4))]
    made = AnchorStatistics(
        Estimate(quadratic_risk(jacobians, targets, mean)),
        6,
        (1.0, 1.0),
        tuple(Estimate(float(k)) for k in kernel),
        (Estimate(0.0), Estimate(0.0)),
        (0.3, 0.7),
        0.1,
        Estimate(1.0),
    )
    assert made.own_risk.value + made.noise(1.0).value == pytest.approx(exact, rel=1e-12)


def test_merge_anchored_six_is_an_equality_for_quadratic_loss_along_the_gradient():
    jacobians, targets = quadratic_world(1)
    merged = np.array([0.1, 0.4, -0.3, 0.2])
    gradient = np.einsum("nkp,nk->p", jacobians, jacobians @ merged - targets) / len(targets)
    for direction, tight in ((gradient, True), (np.array([0.2, -0.1, 0.4, 0.3]), False)):
        expert = merged + 0.7 * direction
        dispersion = (((jacobians @ (expert - merged)) ** 2).sum(-1)).mean()
        made = MergeAnchor(
            Estimate(quadratic_risk(jacobians, targets, merged)),
            Estimate(float(gradient @ gradient)),
            float(((expert - merged) ** 2).sum()),
            Estimate(float(dispersion)),
        )
        right = made.risk.value + made.gradient_flatness.value + made.dispersion.value
        right += 0.5 * made.kernel_dispersion.value  # gamma = 1
        left = quadratic_risk(jacobians, targets, expert)
        assert right == pytest.approx(left, rel=1e-12) if tight else right > left + 1e-6


def softmax_world(seed=0, tasks=3, examples=5, classes=3, size=2):
    """Linear scores; each task a finite population (uniform); theta is two-dimensional: exact quadrature."""
    generator = np.random.default_rng(seed)
    jacobians = generator.normal(size=(tasks, examples, classes, size))
    labels = generator.integers(classes, size=(tasks, examples))
    means = generator.normal(size=(tasks, size))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    return jacobians, labels, means, grid, np.outer(weights, weights).ravel() / weights.sum() ** 2


def log_softmax(scores):
    return scores - np.logaddexp.reduce(scores, -1, keepdims=True)


def test_identity_behind_theorem2_is_exact_for_cross_entropy():
    """L_alpha(theta_m) = sum_j beta_j L_j(Q_j) + H_Q + gap - gain: the terms' values, signs and pairing."""
    jacobians, labels, means, grid, weights = softmax_world()
    alpha, beta, sigma = np.array(ALPHA), np.array(BETA), (0.4, 0.6, 0.5)
    merged = np.array([0.8, -0.9])

    def task_losses(theta):  # [tasks, examples]
        return -np.take_along_axis(log_softmax(jacobians @ theta), labels[..., None], -1)[..., 0]

    tables, gain = np.zeros((3, 5, 3)), 0.0
    log_merged = log_softmax(jacobians @ merged)
    for j in range(3):
        for point, weight in zip(grid, weights, strict=True):
            theta = means[j] + sigma[j] * point
            tables[:, :, j] += weight * task_losses(theta)
            divergence = (np.exp(log_merged) * (log_merged - log_softmax(jacobians @ theta))).sum(-1)
            gain += beta[j] * weight * float(alpha @ divergence.mean(-1))
    residual = np.exp(log_merged) - np.eye(3)[labels]
    gradient = np.einsum("t,tnkp,tnk->p", alpha, jacobians, residual) / 5
    gap = float(gradient @ (merged - beta @ means))
    any_anchor = AnchorStatistics(
        Estimate(0.1), 9, (1.0,), (Estimate(1.0),), (Estimate(1.0),), (0.5,), 0.1, Estimate(1.0)
    )
    losses = [torch.tensor(t) for t in tables]
    bound = theorem2([any_anchor] * 3, losses, ALPHA, BETA, Estimate(gap), Estimate(gain), delta=0.05)
    linear_part = sum(t.estimate.value for t in bound.terms[4:])
    own = float(beta @ np.array([tables[j, :, j].mean() for j in range(3)]))
    assert own + linear_part == pytest.approx(float(alpha @ task_losses(merged).mean(-1)), rel=1e-9)
    # and Lemma 2 with its gap: the mean of a posterior does better by E KL(p_mean || p_theta)
    assert gain > 0.0


def test_theorem3_is_an_equality_for_the_worst_cost():
    """With c(k, y) = M 1[q_k > p_k] the excess is M TV exactly; every other rung is above."""
    generator = torch.Generator().manual_seed(0)
    scale = 1.7
    p, q = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)
    cost = scale * (q.softmax(-1) > p.softmax(-1)).double()
    teacher, student = ((s.softmax(-1) * cost).sum(-1).mean() for s in (p, q))
    made = ladder([p], [q], (1.0,), cost_bound=scale)
    values = {
        rung: theorem3(made, [Estimate(float(teacher))], rung=rung).value
        for rung in ("total_variation", "minimum", "pinsker", "bretagnolle_huber")
    }
    assert values["total_variation"] == pytest.approx(float(student), rel=1e-10)
    assert float(student) < values["minimum"] == min(values["pinsker"], values["bretagnolle_huber"])


def test_theorem3_excess_and_argmax_error():
    generator = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)
    made = ladder([p, q], [q, p], (0.3, 0.7))
    risks, floor = [Estimate(0.3), Estimate(0.2)], [Estimate(0.1), Estimate(0.15)]
    excess = theorem3(made, risks, floor)
    assert excess.terms[0].estimate.value == pytest.approx(0.3 * 0.2 + 0.7 * 0.05)
    assert excess.reading == "excess risk"
    error = argmax_error(made, risks)
    assert error.value == pytest.approx(0.3 * 0.3 + 0.7 * 0.2 + made.disagreement.total.value)
    for bad in ([Estimate(0.3)], [Estimate(1.1), Estimate(0.2)]):
        with pytest.raises(InputError):
            theorem3(made, bad)
    with pytest.raises(InputError):
        theorem3(made, floor, risks)


def test_theorem1_by_hand():
    posteriors = [
        PosteriorStatistics(Estimate(0.4), 300, 5.0, Estimate(0.3), 0.2, Estimate(1.5)),
        PosteriorStatistics(Estimate(0.2), 500, 8.0, Estimate(0.1), 0.4, Estimate(0.7)),
    ]
    bound = theorem1(posteriors, Estimate(-0.05), (0.4, 0.6), (0.3, 0.7), delta=0.05)
    expected = -0.05
    for b, q in zip((0.3, 0.7), posteriors, strict=True):
        risk = q.posterior_risk.value + (q.kl + math.log(2 / 0.05)) / (q.eta * q.n)
        c = q.qsb.value
        expected += b * (risk / (1 - q.eta * c / 2) + q.eta / (2 - q.eta * c) * q.flatness.value)
    assert bound.value == pytest.approx(expected, rel=1e-12)
