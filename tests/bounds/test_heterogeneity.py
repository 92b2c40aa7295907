"""Cross-risk, H_Q and its standard error."""

import math

import pytest
import torch
import torch.nn.functional as F

from bounds.heterogeneity import cross_risk, heterogeneity, pointwise_losses
from bounds.types import InputError


def random_losses(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = [torch.rand(m, 1, generator=generator, dtype=torch.float64) for m in sizes]
    return [
        s + torch.rand(m, len(sizes), generator=generator, dtype=torch.float64)
        for s, m in zip(shared, sizes, strict=True)
    ]


def test_pointwise_losses_against_torch():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(5, (8,), generator=generator)
    got = pointwise_losses(scores, labels, "cross-entropy", temperature=2.0)
    for k in range(3):
        torch.testing.assert_close(got[k], F.cross_entropy(scores[k] / 2.0, labels, reduction="none"))
        wrong = pointwise_losses(scores, labels, "0-1")[k]
        torch.testing.assert_close(wrong, (scores[k].argmax(-1) != labels).double())
        brier = (scores[k].softmax(-1) - F.one_hot(labels, 5)).pow(2).sum(-1)
        torch.testing.assert_close(pointwise_losses(scores, labels, "brier")[k], brier)
    assert pointwise_losses(scores, labels, "0-1").shape == (3, 8)


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[200.0, -200.0], [200.0, -200.0]])
    got = pointwise_losses(scores, torch.tensor([0, 1]), "cross-entropy")
    torch.testing.assert_close(got, torch.tensor([0.0, 400.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("scores", "labels", "kind"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0-1"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "0-1"),
        (torch.zeros(2, 3), torch.tensor([0]), "0-1"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "0-1"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "0-1"),
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), "0-1"),
        (torch.zeros(3), torch.tensor([0]), "0-1"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "hinge"),
    ],
)
def test_pointwise_losses_refuse(scores, labels, kind):
    with pytest.raises(InputError):
        pointwise_losses(scores, labels, kind)


def test_cross_risk_is_means_and_standard_errors():
    losses = random_losses((40, 7, 1))
    table = cross_risk(losses)
    for i, rows in enumerate(losses):
        torch.testing.assert_close(table.risk[i], rows.mean(0))
        if len(rows) > 1:
            torch.testing.assert_close(table.stderr[i], rows.std(0) / math.sqrt(len(rows)))
    assert bool(torch.isinf(table.stderr[2]).all())
    assert table.sizes == (40, 7, 1)


def test_one_task_alone_has_no_heterogeneity():
    one = heterogeneity([torch.rand(9, 1)], [1.0], [1.0])
    assert one.value == 0.0
    assert one.stderr == 0.0


def test_heterogeneity_is_the_double_sum():
    losses = random_losses((40, 30, 20), seed=1)
    alpha, beta = (0.2, 0.5, 0.3), (0.6, 0.1, 0.3)
    risk = [[float(losses[i][:, j].mean()) for j in range(3)] for i in range(3)]
    expected = sum(alpha[i] * beta[j] * (risk[i][j] - risk[j][j]) for i in range(3) for j in range(3))
    got = heterogeneity(losses, alpha, beta)
    assert got.value == pytest.approx(expected, rel=1e-12)
    assert heterogeneity(cross_risk(losses), alpha, beta) == got
    assert got.n == 90
    assert got.status == "estimated"


def test_identity_one_gives_back_the_mixtures_risk():
    """(1): L_alpha(Q_beta) = sum_j beta_j L_j(Q_j) + H_Q; and H_Q can be negative."""
    losses = random_losses((40, 30, 20), seed=2)
    alpha, beta = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.6, 0.1, 0.3]).double()
    risk = cross_risk(losses).risk
    mixture = float(alpha @ risk @ beta)
    own = float(beta @ risk.diagonal())
    assert own + heterogeneity(losses, alpha, beta).value == pytest.approx(mixture, rel=1e-12)
    losses[0] = losses[0] + 5.0  # a hard task evaluated less than it is merged
    assert heterogeneity(losses, alpha, beta).value < 0.0


def test_standard_error_formula_by_hand():
    """SE^2 = sum_i Var[alpha_i sum_j beta_j l_j - beta_i l_i]/m_i: the shared part of the columns counts."""
    losses = random_losses((40, 30, 20), seed=3)
    alpha, beta = (0.2, 0.5, 0.3), (0.6, 0.1, 0.3)
    variance = 0.0
    for i, rows in enumerate(losses):
        values = alpha[i] * sum(beta[j] * rows[:, j] for j in range(3)) - beta[i] * rows[:, i]
        variance += float(values.var()) / len(rows)
    assert heterogeneity(losses, alpha, beta).stderr == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_standard_error_agrees_with_the_bootstrap_and_with_repetition():
    alpha, beta = (0.2, 0.5, 0.3), (0.6, 0.1, 0.3)
    losses = random_losses((150, 100, 80), seed=4)
    stated = heterogeneity(losses, alpha, beta)
    boot = heterogeneity(losses, alpha, beta, bootstrap=1000, seed=5)
    assert boot.value == stated.value
    assert boot.stderr == pytest.approx(stated.stderr, rel=0.12)
    values = [heterogeneity(random_losses((150, 100, 80), seed=s), alpha, beta).value for s in range(400)]
    assert float(torch.tensor(values).std()) == pytest.approx(stated.stderr, rel=0.15)


def test_tasks_that_do_not_enter_do_not_count():
    losses = random_losses((40, 1, 20), seed=6)
    got = heterogeneity(losses, (0.5, 0.0, 0.5), (0.5, 0.0, 0.5))
    assert got.n == 60
    assert math.isfinite(got.stderr)
    assert heterogeneity(losses, (0.5, 0.2, 0.3), (0.5, 0.0, 0.5)).stderr == math.inf


def test_refusals():
    losses = random_losses((10, 10))
    for alpha, beta in (((0.5, 0.6), (0.5, 0.5)), ((1.5, -0.5), (0.5, 0.5)), ((1.0,), (0.5, 0.5))):
        with pytest.raises(InputError):
            heterogeneity(losses, alpha, beta)
    for bad in (
        [],
        [torch.zeros(3, 2)],
        [torch.zeros(0, 1)],
        [torch.full((3, 1), math.inf)],
        [torch.zeros(3)],
    ):
        with pytest.raises(InputError):
            cross_risk(bad)
    with pytest.raises(InputError):
        heterogeneity(cross_risk(losses), (0.5, 0.5), (0.5, 0.5), bootstrap=10)
