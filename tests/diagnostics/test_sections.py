"""Certificates, comparison, flatness and kernel of a report, against direct computations on ``toy``."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import fisher_exact

from bounds.certificates import Count, choose_constants, held_out, pooled, weighted_mean
from bounds.pac_bayes import kl_inverse
from bounds.types import InputError
from diagnostics.report import build
from diagnostics.sections import certificates, comparison, evidence, flatness, gibbs, ledger
from diagnostics.sections.gibbs import merged_draws
from diagnostics.settings import OWN_SCALE, Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import METHODS, merge, merged
from merging.params import partition
from merging.rows import NOTHING, VALIDATION, Merge, Method, NoSettings
from merging.suites import Suite, toy
from merging.task import mean_accuracy

SMALL = Settings(held_out=24, kernel=12, train=30, draws=8, points=3, hessian=24, gibbs_draws=2)


def make(suite, method, **settings):
    return merge(method, suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, **settings)


def workspace(suite, *artifacts, settings=SMALL):
    subjects = [Subject(f"{i}-{a.method}", f"{i}.pt", a) for i, a in enumerate(artifacts)]
    return Workspace(subjects, lambda: suite, settings, Cache(None))


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def learned(suite):
    return make(suite, "samerging", steps=30, examples=16)


def errors(suite, theta, split):
    wrong = []
    for task in suite.tasks:
        sample = getattr(task, split)
        wrong.append((task.forward(theta, sample.inputs).argmax(1) != sample.labels).double())
    return wrong


def test_a_suite_without_calibration_inputs_has_certificates_and_a_ledger(suite):
    """There is no pilot then: the constants are those that need no data."""
    tasks = [task.changed(calibration=None) for task in suite.tasks]
    bare = Suite("bare", suite.task_vectors, tasks)
    space = workspace(bare, merge("average", bare))
    section = certificates.compute(space, space.subjects[0])
    labels = evidence.gathered(space, space.subjects[0])
    assert labels.pilot is None
    expected = weighted_mean(labels.samples(evidence.ERROR, inputs=False), space.alpha, 0.05)
    assert section.rows[0].value == expected.value
    assert section.missing["(15) with unlabelled inputs"] == "a task has no calibration inputs"
    nats, _ = ledger.compute(space, space.subjects[0]).tables
    assert sum(part.observed for part in nats.parts) == pytest.approx(nats.total.observed, abs=1e-12)


def by_unit(section, unit):
    return [row for row in section.rows if row.unit == unit]


def test_a_fixed_model_is_certified_on_validation_and_compared_on_test(suite, learned):
    space = workspace(suite, learned)
    section = certificates.compute(space, space.subjects[0])
    wrong, test = (errors(suite, learned.merged, split) for split in ("validation", "test"))
    means = [float(w.mean()) for w in test]
    assert section.models_looked_at == 1
    first = section.rows[0]  # the one that the verdict quotes: labels alone, whatever other rows came out as
    assert (first.equation, first.unit, first.n) == ("(14)", "error", sum(map(len, wrong)))
    assert first.observed == pytest.approx(sum(float(w.mean()) for w in wrong) / 3)
    assert first.test_error == pytest.approx(sum(means) / 3)
    (row,) = (r for r in section.rows if r.equation == "(12), (13)")
    counts = [Count(float(w.sum()), len(w)) for w in wrong]
    assert row.value == pooled(counts, 0.05).value
    assert row.test_error == pytest.approx(sum(c.n * t for c, t in zip(counts, means, strict=True)) / row.n)
    assert [t.test_error for t in section.tasks] == pytest.approx(means)
    assert [t.value for t in section.tasks] == [held_out(c.errors, c.n, 0.05 / 3).value for c in counts]
    assert all(t.beyond == (t.test_error > t.value) for t in section.tasks)


def test_weighted_means_are_those_of_their_quantities(suite, learned):
    """Nats by hand, differences with their sign, and (14) with the constants of the pilot."""
    space = workspace(suite, learned)
    section = certificates.compute(space, space.subjects[0])
    of = {name: [] for name in ("nats", "expert", "pretrained", "merged")}
    for index, task in enumerate(suite.tasks):
        x, y = task.validation.inputs, task.validation.labels
        scores = task.forward(learned.merged, x).double()
        of["nats"].append(float(-(0.98 * scores.softmax(1) + 0.02 / scores.shape[1]).log()[range(len(y)), y].mean()))
        for name, theta in (
            ("merged", learned.merged),
            ("expert", suite.task_vectors.expert(index)),
            ("pretrained", suite.task_vectors.base),
        ):
            of[name].append(float((task.forward(theta, x).argmax(1) != y).double().mean()))
    mean = {name: sum(values) / len(values) for name, values in of.items()}
    nats = next(r for r in by_unit(section, "nats") if r.equation == "(14)")
    assert nats.observed == pytest.approx(mean["nats"], abs=1e-6)
    teachers, base = (r for r in by_unit(section, "difference of errors") if r.equation == "(14)")
    assert teachers.observed == pytest.approx(mean["merged"] - mean["expert"])
    assert base.observed == pytest.approx(mean["merged"] - mean["pretrained"])
    assert base.observed < base.value < 0.5
    found = evidence.gathered(space, space.subjects[0])
    samples = found.samples(evidence.ERROR, inputs=False)
    constants = choose_constants(found.pilots(evidence.ERROR), samples, (1 / 3,) * 3, 0.05)  # pyright: ignore
    assert section.rows[0].value == weighted_mean(samples, (1 / 3,) * 3, 0.05, constants).value
    assert "class by class" in section.missing["(15) with unlabelled inputs"]  # as toy's splits are


def test_unused_calibration_inputs_serve_where_splits_were_drawn_by_chance(suite, learned):
    generator = torch.Generator().manual_seed(3)

    def some(sample, count):
        return sample.take(torch.randperm(len(sample), generator=generator)[:count])

    tasks = [t.changed(validation=some(t.validation, 17), test=some(t.test, 31)) for t in suite.tasks]
    space = workspace(dataclasses.replace(suite, tasks=tasks), learned)
    section = certificates.compute(space, space.subjects[0])
    assert section.missing == {}
    rows = [r for r in section.rows if r.equation == "(15)"]
    others = sum(len(task.calibration) - 16 for task in tasks)  # the merge was learned on 16 of each
    assert rows
    assert {r.unlabelled for r in rows} == {others}
    assert section.rows[0].equation == "(14)"
    found = evidence.gathered(space, space.subjects[0])
    samples = found.samples(evidence.ERROR, inputs=True)
    constants = choose_constants(found.pilots(evidence.ERROR), samples, (1 / 3,) * 3, 0.05)  # pyright: ignore
    bound = weighted_mean(samples, (1 / 3,) * 3, 0.05, constants)
    values = [r.value for r in rows if r.name.startswith("error, α")]
    assert values == ([bound.value] if constants.slope else [])
    for index, (task, sample) in enumerate(zip(tasks, samples, strict=True)):
        scores = [task.forward(theta, task.validation.inputs).double() for theta in
                  (suite.task_vectors.expert(index), learned.merged)]  # fmt: skip
        guess = 1 - scores[0].softmax(1)[range(17), scores[1].argmax(1)]
        torch.testing.assert_close(sample.predicted, guess, rtol=0.0, atol=1e-6)


def test_side_by_side_certificates_pay_for_each_other(suite, learned):
    alone = workspace(suite, learned)
    both = workspace(suite, learned, make(suite, "average"))
    one, two = (certificates.compute(w, w.subjects[0]) for w in (alone, both))
    assert two.models_looked_at == 2
    assert all(b.value > a.value for a, b in zip(one.rows[:3], two.rows[:3], strict=True))
    assert two.gibbs[0].delta == pytest.approx(one.gibbs[0].delta / 2)
    assert one.gibbs[0].delta == 0.05


def test_a_choice_on_validation_pays_for_every_candidate_and_has_no_randomised_count(suite):
    chosen = make(suite, "task_arithmetic")
    space = workspace(suite, chosen)
    section = certificates.compute(space, space.subjects[0])
    assert section.models_looked_at == 20
    wrong = errors(suite, chosen.merged, "validation")
    counts = [Count(float(w.sum()), len(w)) for w in wrong]
    (row,) = (r for r in section.rows if r.equation == "(12), (13)")
    assert row.value == pooled(counts, 0.05, 20).value
    assert not [r for r in section.rows if "(16)" in r.equation]
    assert "(16) a draw of λ per example" in section.missing
    silent = dataclasses.replace(chosen, used={"validation": None})
    space = workspace(suite, silent)
    section = certificates.compute(space, space.subjects[0])
    assert [row.equation for row in section.rows] == ["(10), (12)"]
    assert "no held-out certificate" in section.use
    assert section.tasks == ()
    assert ledger.compute(space, space.subjects[0]).missing
    given = make(suite, "task_arithmetic", scale=0.3)
    assert certificates.validation_use(Subject("a", "a.pt", given))[0] == 1


def test_certificates_pay_for_what_post_processings_looked_at(suite):
    def looked(text):
        return certificates.validation_use(Subject("a", "a.pt", make(suite, text)))

    assert looked("average+svc") == (1, "average+svc needs nothing; the validation split is unused: a fixed model")
    assert looked("task_arithmetic+svc")[0] == 20
    assert looked("average+lines")[0] == 20
    assert looked("task_arithmetic+lines")[0] == 400
    count, use = looked("average+lines:rise=0.5")
    assert count == 1
    assert "if the scale was not chosen on these labels" in use


def test_the_ledger_adds_up_and_is_that_of_direct_losses(suite, learned):
    space = workspace(suite, learned)
    section = ledger.compute(space, space.subjects[0])
    for table in section.tables:
        assert sum(p.observed for p in table.parts) == pytest.approx(table.total.observed, abs=1e-12)
        assert [p.delta for p in table.parts] == pytest.approx([0.05 / 3] * 3)
        assert all(p.value > p.observed for p in (*table.parts, table.total))
    rates = torch.stack(
        [torch.stack([w.mean() for w in errors(suite, suite.task_vectors.expert(j), "validation")]) for j in range(3)],
        1,
    )
    merged_rate = torch.stack([w.mean() for w in errors(suite, learned.merged, "validation")]).mean()
    by_hand = (rates.diag().mean(), rates.mean() - rates.diag().mean(), merged_rate - rates.mean())
    (table,) = (t for t in section.tables if t.unit == "error")
    assert [p.observed for p in table.parts] == pytest.approx([float(v) for v in by_hand])
    assert table.test_risk == pytest.approx(
        float(torch.stack([w.mean() for w in errors(suite, learned.merged, "test")]).mean())
    )


def test_holm_adjusts_as_it_should_and_alike_splits_are_not_told_apart(suite, learned):
    assert certificates.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert certificates.holm([0.9, 0.001]) == pytest.approx([0.9, 0.002])
    space = workspace(suite, learned)
    section = certificates.compute(space, space.subjects[0])
    assert certificates.differing(section) == ""
    first, *others = section.tasks
    told = dataclasses.replace(section, tasks=(dataclasses.replace(first, differs=0.002), *others))
    assert "differ in task0 (p = 0.002)" in certificates.differing(told)
    right, labels = torch.eye(2)[torch.zeros(60, dtype=torch.long)], torch.zeros(60, dtype=torch.long)
    turned = labels.clone()
    turned[:20] = 1
    pairs = {"labelled": [{"pretrained": right}] * 2, "labels": [labels] * 2, "test": [{"pretrained": right}] * 2}
    stub = SimpleNamespace(**pairs, test_labels=[labels, turned])
    alike, apart = certificates._differ(stub)  # pyright: ignore
    assert alike == 1.0
    assert apart == pytest.approx(2 * fisher_exact([[0, 60], [20, 40]])[1])  # pyright: ignore


def test_the_certificate_follows_from_what_was_handed_over_not_from_words(suite, monkeypatch):
    """A row that chooses on the validation labels, whatever its words say, is no fixed model."""

    def choosing(tv, tasks, settings, progress):
        scales = [0.1 * k for k in range(1, 51)]
        points = [{k: v + s * tv.stacked[k].sum(0) for k, v in tv.base.items()} for s in scales]
        return Merge(params=max(points, key=lambda point: mean_accuracy(tasks, point, "validation")))

    row = Method(
        build=choosing, settings=NoSettings, paper="labels of the held-out split", needs=VALIDATION, cost="50 merges"
    )
    monkeypatch.setitem(METHODS, "mine", row)
    made = make(suite, "mine")
    assert made.used == {"validation": None}
    looks, use = certificates.validation_use(Subject("a", "a.pt", made))
    assert looks is None
    assert "no held-out certificate" in use
    monkeypatch.setitem(METHODS, "mine", dataclasses.replace(row, needs=NOTHING))
    with pytest.raises(InputError, match=r"split validation of task .task0..*not handed"):
        make(suite, "mine")
    told = dataclasses.replace(made, used={"validation": 50})
    assert certificates.validation_use(Subject("a", "a.pt", told))[0] == 50
    for unknown in (None, {"validation": 0}):
        silent = dataclasses.replace(made, used=unknown)
        assert certificates.validation_use(Subject("a", "a.pt", silent))[0] is None


def test_statement_ten_adds_up_and_its_draws_are_those_of_the_posterior(suite, learned):
    space = workspace(suite, learned)
    section = certificates.compute(space, space.subjects[0])
    (row,) = section.gibbs
    mean = learned.coefficients.double()
    mean_wrong = torch.cat(errors(suite, learned.merged, "validation"))
    prior = torch.full_like(mean, 1 / 3 if row.prior == "1/T" else 0.3)
    assert row.kl == pytest.approx(float((mean - prior).square().sum()) / (2 * row.scale**2))
    assert (row.grid_size, row.delta) == (4, 0.05)
    inner = row.observed + row.monte_carlo_margin
    nats = (row.kl + math.log(2 * math.sqrt(row.n) * row.grid_size / (0.9 * 0.05))) / row.n
    assert row.value == pytest.approx(min(1.0, float(kl_inverse(inner, nats))))
    assert row.draws == 2 * row.n
    found = gibbs.judged_strata(space, space.subjects[0], row.scale, 2)  # where λ̂ itself is right and wrong
    assert [s.examples for s in found] == [int((1 - mean_wrong).sum()), int(mean_wrong.sum())]
    assert [s.draws for s in found] == [2 * s.examples for s in found]
    assert sum(s.errors for s in found) == pytest.approx(row.observed * row.draws)
    upper = [float(kl_inverse(s.errors / s.draws, math.log(2 / 0.005) / s.draws)) for s in found]
    together = sum(u * s.examples / row.n for u, s in zip(upper, found, strict=True))
    assert inner == pytest.approx(together)
    # (16): one draw per example, a count of independent errors
    (drawn,) = (r for r in section.rows if "(16)" in r.equation)
    once = gibbs.judged_strata(space, space.subjects[0], OWN_SCALE, 1)
    count = Count(sum(s.errors for s in once), row.n)
    assert sum(s.draws for s in once) == row.n
    assert (drawn.observed, drawn.value) == (count.errors / row.n, pooled([count], 0.05).value)
    # the Gibbs error itself, by many draws that each judge the whole split
    for scale, observed, draws in ((row.scale, row.observed, row.draws), (OWN_SCALE, drawn.observed, row.n)):
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(300, *mean.shape, generator=generator, dtype=mean.dtype)
        thetas = merged_draws(suite.task_vectors, mean + scale * noise, learned.blocks)
        rates = [
            float(torch.cat(errors(suite, {k: v[i] for k, v in thetas.items()}, "validation")).mean())
            for i in range(300)
        ]
        assert observed == pytest.approx(sum(rates) / len(rates), abs=4 * math.sqrt(0.25 / draws))


def test_another_posterior_gets_other_noise_and_the_same_one_the_same(suite, learned, monkeypatch):
    """Whoever tunes λ on reports must not meet the noise that λ was tuned on."""
    seeds = []
    real = gibbs._seed
    monkeypatch.setattr(gibbs, "_seed", lambda *parts: seeds.append(real(*parts)) or seeds[-1])
    moved = dataclasses.replace(learned, coefficients=learned.coefficients + 1e-3)
    for artifact in (learned, learned, moved):
        space = workspace(suite, artifact)
        gibbs.judged_strata(space, space.subjects[0], 0.01, 1)
    third = len(seeds) // 3
    assert seeds[:third] == seeds[third : 2 * third]
    assert not set(seeds[:third]) & set(seeds[2 * third :])
    assert len(set(seeds[:third])) == third


def test_the_choice_within_a_list_is_the_least_kl_and_the_smaller_s_where_it_is_zero():
    mean = torch.full((3, 2), 0.3, dtype=torch.float64)
    priors = {"1/T": torch.full_like(mean, 1 / 3), "0.3": mean.clone()}
    chosen = gibbs.PriorChoice.best(priors, (0.01, 0.3), mean)
    assert (chosen.name, chosen.scale, chosen.grid) == ("0.3", 0.01, 4)
    chosen = gibbs.PriorChoice.best(priors, (0.01, 0.3), mean + 0.3)
    assert (chosen.name, chosen.scale) == ("1/T", 0.3)


def test_judgements_belong_to_the_examples_they_are_counted_for(suite, learned):
    """With s = 0 the draws are λ̂: no example changes sides. (A shifted order would mix the strata.)"""
    space = workspace(suite, learned)
    right, wrong = gibbs.judged_strata(space, space.subjects[0], 0.0, 2)
    assert right.errors == 0
    assert wrong.errors == wrong.draws > 0


def test_draws_are_merged_as_merges_are(suite):
    blocks = partition(suite.task_vectors.base, "tensor")
    coefficients = torch.randn(4, 3, len(blocks), dtype=torch.float64)
    thetas = merged_draws(suite.task_vectors, coefficients, blocks)
    for draw, lam in enumerate(coefficients):
        for name, expected in merged(suite.task_vectors, lam, blocks).items():
            assert torch.allclose(thetas[name][draw], expected)


def test_a_merge_that_is_not_its_coefficients_has_no_statement_ten(suite, learned):
    bent = dataclasses.replace(learned, merged={k: v + 0.01 for k, v in learned.merged.items()})
    bare = dataclasses.replace(learned, coefficients=None, blocks=None)
    for artifact in (bent, bare):
        space = workspace(suite, artifact)
        section = certificates.compute(space, space.subjects[0])
        assert section.gibbs == ()
        assert section.gap_to_test is None
        assert section.rows
        assert "(10), (16) coefficients" in section.missing
        reason = "not those that" if artifact is bent else "not made of coefficients"
        assert reason in section.missing["(10), (16) coefficients"]
        named = build(space, ("certificates",)).provenance.missing
        assert f"{space.subjects[0].label}: certificates: (10), (16) coefficients" in named


def test_statements_that_cannot_be_made_are_named(suite, learned):
    space = workspace(suite, learned)
    assert list(certificates.compute(space, space.subjects[0]).missing) == ["(15) with unlabelled inputs"]
    chosen = dataclasses.replace(make(suite, "task_arithmetic"), used={"validation": None})
    space = workspace(suite, chosen)
    missing = certificates.compute(space, space.subjects[0]).missing
    assert list(missing) == ["(11), (13), (14) held-out", "(16) a draw of λ per example"]
    assert "no held-out certificate" in next(iter(missing.values()))


def test_a_comparison_that_is_not_made_is_named(suite, learned):
    report = build(workspace(suite, learned, make(suite, "average")), ("accuracy",))
    assert report.comparison is None
    assert "comparison" in report.provenance.missing


def mean_risk(space, theta):
    risks = []
    for task in space.suite.tasks:
        sample = space.held_out(task)
        assert sample.labels is not None
        risks.append(torch.nn.functional.cross_entropy(task.forward(theta, sample.inputs), sample.labels))
    return torch.stack(risks).mean()


def test_flatness_is_that_of_the_weighted_mean(suite, learned):
    space = workspace(suite, learned)
    section = flatness.compute(space, space.subjects[0])
    theta = {k: v.clone().requires_grad_() for k, v in learned.merged.items()}
    risk = mean_risk(space, theta)
    gradient = torch.autograd.grad(risk, list(theta.values()))
    assert section.gradient_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient)))
    squares = sum(v**2 for v in section.gradient_per_block.values())
    assert math.sqrt(squares) == pytest.approx(section.gradient_norm)
    assert len(section.coefficient_eigenvalues) == 3

    def risk_at(lam):
        point = {k: v + sum(c * d[k] for c, d in zip(lam, suite.task_vectors.deltas, strict=True))
                 for k, v in learned.merged.items()}  # fmt: skip
        return mean_risk(space, point)

    hessian = torch.autograd.functional.hessian(risk_at, torch.zeros(3, dtype=torch.float64))
    expected = torch.linalg.eigvalsh(hessian).flip(0)
    assert [e.value for e in section.coefficient_eigenvalues] == pytest.approx(expected.tolist(), rel=1e-8, abs=1e-10)
    assert all(e.stderr > 0 and e.n == 3 * flatness.GROUPS for e in section.coefficient_eigenvalues)
    assert [e.n for e in section.top_eigenvalues] == [24] * 3
    assert workspace(suite, learned, settings=Settings()).settings.hessian == 0, "left out where it is not asked for"


def test_differences_are_those_of_the_sections_and_rankings_follow(suite, learned):
    space = workspace(suite, learned, make(suite, "average"), make(suite, "task_arithmetic"))
    report = build(space)
    compared = report.comparison
    assert compared is not None
    by = {(d.merge, d.quantity): d.difference for d in compared.differences}
    first = report.merges[0]
    assert first.bound
    assert first.accuracy
    for other in report.merges[1:]:
        assert other.bound
        assert other.accuracy
        risk = by[other.label, comparison.RISK]
        assert risk.value == pytest.approx(other.accuracy.risk.value - first.accuracy.risk.value)
        error = by[other.label, comparison.ERROR]
        assert error.value == pytest.approx(other.accuracy.error.value - first.accuracy.error.value)
        for mine, reference in zip(other.bound.readings, first.bound.readings, strict=True):
            difference = by[other.label, f"bound, {mine.reading} (nats)"]
            assert difference.value == pytest.approx(mine.value - reference.value)
            assert 0 < difference.stderr < 1
    risks = {m.label: m.accuracy.risk.value for m in report.merges if m.accuracy}
    assert list(compared.test_order) == sorted(risks, key=risks.__getitem__)
    corrected = {m.label: m.bound.readings[2].value for m in report.merges if m.bound}
    ranking = compared.rankings[2]
    assert list(ranking.order) == sorted(corrected, key=corrected.__getitem__)
    assert ranking.agreement == comparison.rank_agreement(list(corrected.values()), list(risks.values()))
    assert len(report.verdict) == 12


def test_the_bootstrap_has_the_standard_error_of_a_mean():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(400, generator=generator), 2 * torch.randn(100, generator=generator)]
    estimate = comparison.paired_bootstrap([values], (0.25, 0.75), 4000, 0)
    assert estimate.value == pytest.approx(float(0.25 * values[0].mean() + 0.75 * values[1].mean()), abs=1e-6)
    expected = math.sqrt(sum((w * float(v.std())) ** 2 / len(v) for w, v in zip((0.25, 0.75), values, strict=True)))
    assert estimate.stderr == pytest.approx(expected, rel=0.06)
    cancelling = comparison.paired_bootstrap([values, [-v for v in values]], (0.25, 0.75), 100, 0)
    assert cancelling.stderr == pytest.approx(0, abs=1e-12)  # groups of a task share their examples


def test_artifacts_of_different_suites_are_refused(suite, learned):
    with pytest.raises(InputError, match="suite and sources"):
        build(workspace(suite, learned, dataclasses.replace(learned, suite="mini8")))
