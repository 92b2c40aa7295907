"""Certificates of means of examples: recomputed position by position, and what a count of tokens would claim."""

import math

import pytest
import torch

from bounds.certificates import BoundedSample, held_out, weighted_mean
from diagnostics import report
from diagnostics.settings import FLOOR
from merging import merge
from merging.sequences import IGNORED
from merging.suites import Suite
from tests.sequences_world import VOCABULARY, world

LARGEST = math.log(VOCABULARY / FLOOR)


def smoothed_means(task, theta):
    """X_i of the validation split, one position at a time, and the shares of wrong tokens."""
    sample, nats, wrong = task.validation, [], []
    for rows, labels in zip(task.forward(theta, sample.inputs), sample.labels, strict=True):
        kept = labels != IGNORED
        p = rows[kept].double().softmax(-1)
        q = (1 - FLOOR) * p + FLOOR / VOCABULARY
        nats.append(float(-q.gather(1, labels[kept][:, None]).log().mean()))
        wrong.append(float((p.argmax(-1) != labels[kept]).double().mean()))
    return torch.tensor(nats, dtype=torch.float64), torch.tensor(wrong, dtype=torch.float64)


def without_calibration(suite):
    tasks = [task.changed(calibration=None) for task in suite.tasks]
    return Suite("without", suite.task_vectors, tasks, sources=suite.sources)


@pytest.fixture(scope="module")
def bare():
    """No calibration split: no pilot, so that constants need no data."""
    suite = without_calibration(world())
    made = merge("average", suite)
    sections = ["token_certificates", "ledger"]
    return suite, made, report(made, suite, sections=sections).data.merges[0]


def test_rows_are_e_values_of_the_means_of_examples(bare):
    suite, made, found = bare
    merged = [smoothed_means(task, made.merged) for task in suite.tasks]
    base = [smoothed_means(task, suite.task_vectors.base) for task in suite.tasks]
    experts = [smoothed_means(task, suite.task_vectors.expert(i)) for i, task in enumerate(suite.tasks)]
    nats = [BoundedSample(values=m[0], upper=LARGEST) for m in merged]
    shares = [BoundedSample(values=m[1]) for m in merged]
    above = [
        [BoundedSample(values=m[0] - o[0], lower=-LARGEST, upper=LARGEST) for m, o in zip(merged, other, strict=True)]
        for other in (base, experts)
    ]
    wrong = [BoundedSample(values=m[1] - o[1], lower=-1.0) for m, o in zip(merged, base, strict=True)]
    for row, samples in zip(found.token_certificates.rows, (nats, shares, *above, wrong), strict=True):
        bound = weighted_mean(samples, [0.5, 0.5], 0.05)
        assert row.value == pytest.approx(bound.value, rel=1e-6), row.name
        assert row.observed == pytest.approx(sum(float(s.values.mean()) for s in samples) / 2, abs=1e-12)
        assert row.n == sum(len(s.values) for s in samples)
    for row, sample in zip(found.token_certificates.tasks, nats, strict=True):
        assert row.value == pytest.approx(weighted_mean([sample], [1.0], 0.025).value, rel=1e-6)


def test_the_unit_is_the_example_and_tokens_would_claim_more(bare):
    found = bare[2].token_certificates
    assert found.n == sum(len(task.validation) for task in bare[0].tasks)
    assert found.tokens == sum(int((task.validation.labels != IGNORED).sum()) for task in bare[0].tasks)
    wrong = found.rows[1]
    claimed = held_out(round(wrong.observed * found.tokens), found.tokens, 0.05).value
    assert claimed < wrong.value, "the mutant of docs/theory.md section 19 is tighter, and misses"


def test_the_ledger_adds_up_and_its_total_is_the_first_certificate(bare):
    _, _, found = bare
    for table, row in zip(found.ledger.tables, found.token_certificates.rows, strict=False):
        assert sum(part.observed for part in table.parts) == pytest.approx(table.total.observed)
        assert table.total.value == pytest.approx(row.value)
        assert table.test_risk == pytest.approx(row.test_error)


def test_a_pilot_of_drawn_tokens_narrows_the_limit_and_looks_at_no_label():
    suite = world()
    made = merge("average", suite)
    rows = report(made, suite, sections=["token_certificates"]).data.merges[0].token_certificates.rows
    plain = report(made, without_calibration(suite), sections=["token_certificates"])
    for row, other in zip(rows, plain.data.merges[0].token_certificates.rows, strict=True):
        assert row.observed < row.value
        assert row.observed == pytest.approx(other.observed)
    assert rows[0].value < plain.data.merges[0].token_certificates.rows[0].value


def test_a_merge_that_chose_on_the_labels_pays_for_it():
    suite = world()
    fixed, chosen = merge("task_arithmetic", suite, scale=0.3), merge("task_arithmetic", suite)
    looked = [
        report(made, suite, sections=["token_certificates"]).data.merges[0].token_certificates
        for made in (fixed, chosen)
    ]
    assert looked[0].models_looked_at == 1
    assert looked[1].models_looked_at == 20
    assert "chose among 20" in looked[1].use
