"""The coverage study: its world against independent computation, its verdicts, and a fast run."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from bounds.certificates import held_out
from bounds.pac_bayes import lemma1
from bounds.types import Estimate, InputError
from diagnostics.study import coverage as study
from diagnostics.study.certificates import exact_miss_rate, gibbs_mean
from diagnostics.study.population import (
    ALPHA,
    CLASSES,
    EACH,
    FLOOR,
    LABELLED,
    UNLABELLED,
    Certified,
    drawn,
    populations,
)
from diagnostics.study.rows import Row, mean_row, rate_limits, violation_row
from diagnostics.study.world import (
    OneHotLogistic,
    adversarial_mean,
    per_pair,
    regularised_mean,
    sample_counts,
)


def softplus(x):
    return np.logaddexp(0.0, x)


@pytest.fixture(scope="module")
def rows():
    return study.coverage(draws=250, seed=1)


def test_every_statement_holds_and_every_mutant_is_caught(rows):
    assert [row for row in rows if not row.passed] == []
    assert {(r.claim, r.variant) for r in rows if r.kind == "statement"} == {
        (claim, "as stated")
        for claim in ("(2)", "(2a)", "(4)", "(5)", "(9)", "(10)", *(f"({n})" for n in (13, 14, 15, 16, 18, 19)))
    }
    assert {(r.claim, r.variant) for r in rows if r.kind == "mutant"} == {
        ("(2)", "no Poincaré term"),
        ("(2)", "KL = 0"),
        ("(2)", "no complexity"),
        ("(2)", "KL/4"),
        ("(2a)", "KL/4"),
        ("(2a)", "no second moment"),
        ("(4)", "no H_Q"),
        ("(5)", "no H_Q"),
        ("(5)", "no consensus gap"),
        ("(5)", "Bregman gain twice"),
        ("(5)", "KL = 0"),
        ("(5)", "no complexity"),
        ("(9)", "no union"),
        ("(9)", "on the training sample"),
        ("(10)", "KL/2"),
        ("(10)", "draws taken for the mean"),
        ("(13)", "plain Clopper-Pearson"),
        ("(13)", "without the maximum"),
        ("(14)", "n_t/n for alpha"),
        ("(14)", "delta not divided"),
        ("(14)", "difference of two limits"),
        ("(15)", "mean of g taken as exact"),
        ("(15)", "inputs of other class shares"),
        ("(16)", "one common draw"),
        ("(18)", "difference of two limits"),
        ("(19)", "raw cross-entropy"),
    }


def test_simulated_rate_of_held_out_matches_its_exact_tail(rows):
    for method in ("clopper-pearson", "kl"):
        (row,) = (r for r in rows if r.setting.startswith(method))
        tail = exact_miss_rate(0.3, 200, method)
        assert row.lower <= tail <= row.upper
    assert exact_miss_rate(0.3, 200, "clopper-pearson") <= 0.05


def test_the_pair_of_section_8_is_summed_over_its_outcomes(rows):
    """One error has probability .0501; plain Clopper-Pearson is then sqrt(.95) = .97468, below the mean .97495."""
    pair = {row.variant: row for row in rows if "two examples" in row.setting}
    assert pair["without the maximum"].rate == pytest.approx(0.0501)
    assert pair["as stated"].rate == 0.0
    assert all((row.draws, row.lower, row.upper) == (0, row.rate, row.rate) for row in pair.values())
    assert math.sqrt(0.95) < (1 + 0.9499) / 2 <= held_out(1, 2, 0.05).value


def test_populations_have_exact_means_and_splits_their_classes():
    worlds, pilots = populations(np.random.default_rng(3))
    certified = Certified(worlds, pilots)
    for task, (world, classes) in enumerate(zip(worlds, CLASSES, strict=True)):
        error, excess, nats = (world.quantities[name] for name in ("error", "excess", "nats"))
        assert len(error.values) == classes * EACH
        assert torch.equal(excess.values, error.values - world.losses.experts[:, task])
        capped = -torch.log((1 - FLOOR) * torch.exp(-world.raw) + FLOOR / classes)
        assert torch.allclose(nats.values, capped)
        assert nats.upper == pytest.approx(math.log(classes / FLOOR))
        for sample in (error, nats):
            assert sample.predicted is not None
            assert float(sample.predicted @ sample.values) > float(sample.predicted.mean() * sample.values.sum())
    weighted = sum(a * world.losses.merged.mean() for a, world in zip(ALPHA, worlds, strict=True))
    assert certified.truth["error"] == pytest.approx(float(weighted))
    assert sum(certified.parts) == pytest.approx(float(weighted)), "(18) adds up"
    own = sum(a * world.losses.experts[:, t].mean() for t, (a, world) in enumerate(zip(ALPHA, worlds, strict=True)))
    assert certified.parts[0] == pytest.approx(float(own))
    assert certified.raw > certified.truth["nats"] + 0.5, "what a few sure and wrong examples cost"
    labelled, others, easy = drawn(np.random.default_rng(0))
    for classes, n, more, *positions in zip(CLASSES, LABELLED, UNLABELLED, labelled, others, easy, strict=True):
        counts = [torch.bincount(p // EACH, minlength=classes).tolist() for p in positions]
        assert counts == [[n] * classes, [more] * classes, [more * classes] + [0] * (classes - 1)]


def test_verdicts():
    def row(kind, lower):
        return Row(
            claim="(2)", variant="v", setting="s", kind=kind, draws=10, rate=lower, lower=lower, upper=1.0, limit=0.05
        )

    assert row("statement", 0.05).passed
    assert not row("statement", 0.051).passed
    assert row("mutant", 0.051).passed
    assert not row("mutant", 0.05).passed
    violated = np.arange(100) < 9
    made = violation_row("(2)", "v", "s", "statement", violated)
    assert (made.rate, made.draws) == (0.09, 100)
    assert binom.sf(8, 100, made.lower) == pytest.approx(0.05)  # Clopper-Pearson by its definition
    assert binom.cdf(9, 100, made.upper) == pytest.approx(0.05)
    assert rate_limits(0, 100) == (0.0, pytest.approx(1 - 0.05 ** (1 / 100)))
    assert rate_limits(100, 100) == (pytest.approx(0.05 ** (1 / 100)), 1.0)
    values = np.array([1.0, 2.0, 3.0])
    made = mean_row("(2a)", "v", "s", "statement", values)
    assert made.lower == pytest.approx(2.0 - 1.6449 / math.sqrt(3), abs=1e-4)
    assert made.limit == 1.0


def test_world_tables_against_gauss_hermite():
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    for scale in (0.3, 3.0):
        world, nu = OneHotLogistic(scale), np.array([-7.013, -0.51, 0.0, 2.337, 8.1])
        margin = scale * (nu[:, None] + nodes)
        loss, slope = softplus(-margin), scale / (1.0 + np.exp(margin))
        np.testing.assert_allclose(world.loss(nu), loss @ weights, atol=1e-6)
        np.testing.assert_allclose(world.loss_squared(nu), loss**2 @ weights, atol=1e-5)
        np.testing.assert_allclose(world.slope_squared(nu), slope**2 @ weights, atol=1e-5)
        np.testing.assert_allclose(world.derivative(nu), -(slope @ weights), atol=1e-6)


def test_statistics_against_sampling_from_the_posterior():
    generator = np.random.default_rng(0)
    world, positive, nu = OneHotLogistic(2.0), np.array([0.9, 0.3, 0.5]), np.array([[0.7, -0.4, 0.1]])
    plus, minus = sample_counts(generator, 30, positive, 1)
    got = world.draws(nu, plus, minus, positive)
    theta = nu + generator.normal(size=(400_000, 3))
    up, down = softplus(-2.0 * theta), softplus(2.0 * theta)
    slopes = [(2.0 / (1.0 + np.exp(sign * 2.0 * theta))) ** 2 for sign in (1, -1)]
    want = {
        "training_risk": ((plus * up + minus * down) / 30).sum(1).mean(),
        "risk": (positive * up + (1 - positive) * down).mean(),
        "squared": (positive * up.mean(0) ** 2 + (1 - positive) * down.mean(0) ** 2).mean(),
        "second_moment": (positive * up**2 + (1 - positive) * down**2).mean(),
        "flatness": (positive * slopes[0] + (1 - positive) * slopes[1]).mean(),
    }
    for name, value in want.items():
        assert float(getattr(got, name)[0]) == pytest.approx(value, rel=0.01), name
    assert float(got.divergence[0]) == pytest.approx(0.5 * (0.49 + 0.16 + 0.01))
    merged, p = np.array([[1.2, 0.3, -0.8]]), lambda f: 1.0 / (1.0 + np.exp(-f))
    teacher, other = p(2.0 * merged), p(2.0 * theta)
    divergence = teacher * np.log(teacher / other) + (1 - teacher) * np.log((1 - teacher) / (1 - other))
    assert float(world.bregman_gain(merged, nu)[0]) == pytest.approx(divergence.mean(), rel=0.01)


def test_point_gradient_is_the_derivative_of_the_point_risk():
    world, positive, theta = OneHotLogistic(0.7), np.array([0.9, 0.3]), np.array([[0.4, -1.1]])
    gradient = world.point_gradient(theta, positive)
    for k in range(2):
        step = np.zeros((1, 2))
        step[0, k] = 1e-6
        slope = (world.point_risk(theta + step, positive) - world.point_risk(theta - step, positive)) / 2e-6
        assert gradient[0, k] == pytest.approx(slope[0], rel=1e-6)
    plus, minus = np.array([[9, 3]]), np.array([[1, 7]])  # the sample with the population's frequencies
    same = world.point_training_risk(theta, plus, minus)
    assert same[0] == pytest.approx(world.point_risk(theta, positive)[0], rel=1e-12)


def test_posterior_rules_reach_their_optimum():
    generator = np.random.default_rng(2)
    world, positive = OneHotLogistic(3.0), np.full(6, 0.5)
    plus, minus = sample_counts(generator, 12, positive, 3)

    def regularised(nu):
        return plus * world.loss(nu) + minus * world.loss(-nu) + 5.0 * nu**2 / 2

    def excess(nu):
        moments = [world.loss(s * nu) ** 2 + world.slope_squared(s * nu) for s in (1, -1)]
        population = 2.0 * (0.5 * (world.loss(nu) + world.loss(-nu)) - 0.05 * 0.5 * sum(moments))
        return population - plus * world.loss(nu) - minus * world.loss(-nu) - nu**2 / (2 * 0.1)

    best, worst = regularised_mean(world, plus, minus, 5.0), adversarial_mean(world, plus, minus, 0.5, 0.1)
    gibbs = gibbs_mean(plus, minus, 1.0)
    for nudge in (-0.02, 0.02):
        assert (regularised(best) <= regularised(best + nudge)).all()
        assert (excess(worst) >= excess(worst + nudge)).all()
    assert np.array_equal(np.sign(gibbs.round(6)), np.sign(plus - minus))
    np.testing.assert_array_equal(per_pair(lambda a, b: 10 * a + b, plus, minus), 10 * plus + minus)


def test_evalue_of_a_rare_loss_is_tight():
    """Point posterior, X ~ Bernoulli(p), exactly: (2a)'s second moment cannot be cut by 5 %."""
    p, eta, n = 0.001, 0.01, 10**7
    term = lemma1(Estimate(0.0), 0.0, n, eta, Estimate(p), delta=0.05).terms[2].estimate.value

    def log_evalue(factor):
        return n * (math.log1p(p * math.expm1(-eta)) + eta * (p - factor * term))

    assert log_evalue(1.0) <= 0.0 < log_evalue(0.95)


def test_command_line(tmp_path, monkeypatch, capsys):
    good = Row(
        claim="(2)",
        variant="as stated",
        setting="tiny",
        kind="statement",
        draws=5,
        rate=0.0,
        lower=0.0,
        upper=0.4,
        limit=0.05,
    )
    bad = Row(
        claim="(2)", variant="no KL", setting="tiny", kind="mutant", draws=5, rate=0.0, lower=0.0, upper=0.4, limit=0.05
    )
    monkeypatch.setattr(study, "EXPERIMENTS", (lambda generator, draws: [good] * draws,))
    out = tmp_path / "deep" / "table.csv"
    assert study.main(["coverage", "--draws", "2", "--out", str(out)]) == 0
    with out.open() as lines:
        written = list(csv.DictReader(lines))
    assert len(written) == 2
    assert written[0]["variant"] == "as stated"
    assert written[0]["passed"] == "True"
    monkeypatch.setattr(study, "EXPERIMENTS", (lambda generator, draws: [good, bad],))
    assert study.main(["coverage"]) == 1
    assert study.main(["coverage", "--draws", "0"]) == 2
    assert "draws" in capsys.readouterr().err
    with pytest.raises(InputError):
        study.coverage(0)


def test_streams_depend_on_the_seed_alone(monkeypatch):
    def experiment(generator, draws):
        return [violation_row("(2)", "v", "s", "statement", generator.random(draws) < 0.5)]

    monkeypatch.setattr(study, "EXPERIMENTS", (experiment, experiment))
    first, second = study.coverage(400, seed=3)
    assert [first, second] == study.coverage(400, seed=3)
    assert first != second
    assert study.coverage(400, seed=4)[0] != first
