"""Bound (5) in three parts, at other anchors and at other weights of the experts, on ``toy``."""

import json

import pytest
import torch

from bounds.theorems import READINGS
from bounds.types import InputError
from diagnostics import bound_report
from diagnostics.figures.style import as_images
from diagnostics.report import build, parts_of
from diagnostics.sections import bound as section
from diagnostics.sections import sweep
from diagnostics.settings import ANCHORS, Settings
from diagnostics.subject import Subject
from diagnostics.terms import linear as linear_world
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge
from merging.artifact import save
from merging.suites import toy

SMALL = {"held_out": 24, "kernel": 12, "train": 30, "draws": 8, "points": 3}
GIVEN = ("0.2,0.3", "0.5")


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def artifact(suite):
    return merge(
        "samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=20, examples=16
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def space(suite, artifact, folder, *beta, **changes):
    settings = Settings(**{**SMALL, "beta": beta or ("uniform",), **changes})
    return Workspace([Subject("m", "m.pt", artifact)], lambda: suite, settings, Cache(folder))


@pytest.fixture(scope="module")
def reports(suite, artifact, folder):
    """The report at every kind of β, from one cache."""
    kinds = {"uniform": ("uniform",), "given": GIVEN, "best": ("best",)}
    made = {}
    for name, beta in kinds.items():
        sections = ["bound", "heterogeneity", *(["sweep", "accuracy"] if name != "given" else [])]
        made[name] = build(space(suite, artifact, folder, *beta), sections)
    return made


@pytest.mark.parametrize("kind", ["uniform", "given", "best"])
def test_the_three_parts_are_the_bound(reports, kind):
    """(5a): the terms of (5) and the three parts have one sum, whatever β is."""
    part = reports[kind].merges[0].bound
    values = {r.reading: r.value for r in part.readings}
    linear = part.parts.linear_risk.value + part.parts.slack.value
    assert values["linearised"] == pytest.approx(linear, abs=1e-9)
    assert values["corrected"] == pytest.approx(linear + part.parts.transfer.value, abs=1e-9)
    rows = part.slack.rows
    assert tuple(row.c for row in rows) == ANCHORS
    assert rows[-1].total == pytest.approx(values["corrected"], abs=1e-9)
    assert rows[-1].slack.value == pytest.approx(part.parts.slack.value)
    for row in rows:
        assert sum(
            b * e.slack.value for b, e in zip(reports[kind].beta, row.experts, strict=True)
        ) == pytest.approx(row.slack.value)  # fmt: skip


def test_beta_acts_in_every_term_and_is_recorded(reports):
    given, uniform = reports["given"], reports["uniform"]
    assert given.beta == (0.2, 0.3, 0.5)
    assert uniform.beta == pytest.approx((1 / 3,) * 3)
    for mine, other in zip(given.merges[0].bound.readings, uniform.merges[0].bound.readings, strict=True):
        for term, same in zip(mine.terms, other.terms, strict=True):
            if term.per_task:
                weighted = sum(b * e.value for b, e in zip(given.beta, term.per_task, strict=True))
                assert term.estimate.value == pytest.approx(weighted)
                assert [e.value for e in term.per_task] == pytest.approx([e.value for e in same.per_task])
    lines = {line.name: line for line in given.assumptions}
    assert lines["weights β of the experts"].value == "0.2,0.3 0.5"
    assert given.settings.beta == GIVEN
    risk = torch.tensor(given.merges[0].heterogeneity.readings["linearised"].risk)
    h_q = risk.mean(dim=0) @ torch.tensor(given.beta) - risk.diagonal() @ torch.tensor(given.beta)
    assert given.merges[0].heterogeneity.readings["linearised"].heterogeneity.value == pytest.approx(
        float(h_q), abs=1e-6
    )


def test_the_best_beta_is_a_vertex_reported_on_examples_it_was_not_chosen_on(suite, artifact, folder, reports):
    best, part = reports["best"], reports["best"].merges[0].bound
    anchors = space(suite, artifact, folder).anchors([1.0])[0]
    chosen = [anchor.on_half(0).value for anchor in anchors]
    place = chosen.index(min(chosen))
    assert best.beta == tuple(float(j == place) for j in range(3))
    assert part.slack.best_expert.expert == place
    assert part.slack.best_expert.chosen.value == pytest.approx(chosen[place])
    assert part.parts.slack.value == pytest.approx(anchors[place].on_half(1).value)
    assert abs(part.parts.slack.value - chosen[place]) > 1e-3  # what a report on the choosing half would say
    assert part.parts.linear_risk.n == 3 * 12  # half of the held-out examples
    assert {line.name: line.value for line in best.assumptions}["weights β of the experts"] == f"1 for task{place}"
    assert best.merges[0].sweep.examples == 12
    at_merge = best.merges[0].sweep.paths[0].points[1]
    assert at_merge.bounds["corrected"] == pytest.approx(part.readings[2].value)
    risks = reports["uniform"].merges[0].bound.parts.linear_risk
    assert risks.n == 3 * 24


def test_another_beta_is_another_bound_in_the_same_cache_and_measures_no_network_at_zero_again(
    suite, artifact, folder, reports, monkeypatch
):
    def gone(*arguments, **more):
        raise AssertionError("linearised again")

    monkeypatch.setattr(linear_world, "on_held_out", gone)
    monkeypatch.setattr(linear_world, "on_training", gone)
    found = build(space(suite, artifact, folder, "0.5 0.25 0.25"), ["bound"]).merges[0].bound
    assert found.readings[1].value != pytest.approx(reports["uniform"].merges[0].bound.readings[1].value)
    again = build(space(suite, artifact, folder, *GIVEN), ["bound"])
    assert again.merges[0].bound == reports["given"].merges[0].bound
    assert again.provenance.seconds == {}


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        (["0.5", "0.5"], "beta: expected 3 weights"),
        (["0.5,0.6,-0.1"], "beta: expected"),
        (["1", "1", "1"], "beta: expected"),
        (["bset"], "beta: expected uniform, best or 3 weights; got bset"),
        (["best", "--no-labels"], "beta: expected uniform or weights without labels"),
    ],
)
def test_weights_off_the_simplex_are_one_line_and_status_two(tmp_path, artifact, beta, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(artifact, "m.pt")
    assert bound_report.main(["--merged", "m.pt", "--workers", "1", "--beta", *beta]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_labels_the_best_weights_are_refused():
    with pytest.raises(InputError, match="beta"):
        Settings(beta=("best",), labels=False)


def test_repeats_end_with_all_examples_and_cover_what_the_bound_says(reports):
    part = reports["uniform"].merges[0].bound
    assert [row.examples for row in part.repeats] == [12, 24]
    last = part.repeats[-1]
    assert last.slack.stderr == part.parts.slack.stderr > 0
    assert last.slack.n == 200
    assert last.linear_risk.value == pytest.approx(part.parts.linear_risk.value, abs=3 * last.linear_risk.stderr / 2)
    assert last.total.value == pytest.approx(last.linear_risk.value + last.slack.value + last.transfer.value)
    assert abs(last.slack.value - part.parts.slack.value) < 3 * last.slack.stderr
    assert part.repeats[0].linear_risk.stderr > last.linear_risk.stderr


def test_comparators_bound_the_same_risk(reports):
    part = reports["uniform"].merges[0].bound
    risk, rows = part.parts.linear_risk.value, {row.name: row for row in part.comparators}
    assert list(rows) == ["merge-anchored", "direct", "pooled"]
    assert all(row.value > risk and row.status == "estimated" for row in rows.values())
    assert rows["merge-anchored"].value > part.readings[READINGS.index("linearised")].value - 0.5
    assert rows["pooled"].value < rows["direct"].value  # one KL in the place of three


def test_a_pooled_form_without_a_rate_that_fits_is_named_and_all_else_is_there(
    reports, suite, artifact, folder, monkeypatch
):
    monkeypatch.setattr("diagnostics.terms.forms.LAMBDA_GRID", (1e9,))
    report = build(space(suite, artifact, folder, "uniform", seed=1), ["bound"])
    part = report.merges[0].bound
    assert [row.name for row in part.comparators] == ["merge-anchored", "direct"]
    (reason,) = [reason for what, reason in report.provenance.missing.items() if "pooled form" in what]
    assert "none from 1e+09 on" in reason
    assert reports["uniform"].merges[0].bound.missing == {}


def texts(report, name, kind):
    (view, part), *_ = parts_of(kind, report.tasks, report.settings, report.merges)
    figures = {"bound": section.SECTION, "sweep": sweep.SECTION}[kind].figures
    return as_images(lambda: figures[name].draw(view, part), name).svg, part


def test_the_figures_lead_with_what_the_parts_are(reports):
    report = reports["uniform"]
    svg, part = texts(report, "totals", "bound")
    for row in part.slack.rows:
        assert f"= {row.total:.2f}" in svg
    assert "measured risk" in svg
    svg, part = texts(report, "slack", "bound")
    assert all(name in svg for name in report.tasks)


def test_the_sweep_shows_what_moves(reports):
    report = reports["uniform"]
    svg, part = texts(report, "sweep", "sweep")
    risks = [p.risk.value for p in part.paths[0].points]
    least = risks.index(min(risks))
    assert f"least {min(risks):.3f} at s = {part.paths[0].points[least].s:g}" in svg
    assert "bound, " not in svg  # a constant above the risk of f^lin: a horizontal line
    for policy in ("experts (c = 1)", "following the path (c = s)", "best c of each expert"):
        assert policy in svg
    svg, part = texts(report, "controls", "sweep")
    assert all(path.name.removeprefix("expert ") in svg for path in part.paths)


def test_policies_are_the_slack_of_their_anchors(reports):
    bound, swept = reports["uniform"].merges[0].bound, reports["uniform"].merges[0].sweep
    slack = {row.c: row.slack.value for row in bound.slack.rows}
    policies = {policy.name: [e.value for e in policy.slack] for policy in swept.policies}
    assert [p.s for p in swept.paths[0].points] == [0, 1, 2]
    assert policies["experts"] == pytest.approx([slack[1.0]] * 3)
    assert policies["path"] == pytest.approx([slack[0.0], slack[1.0], slack[1.0]])
    assert policies["best"] == pytest.approx([bound.slack.best_anchors.slack.value] * 3)
    for path in swept.paths:  # (5a): one constant above the risk of f^lin, in every direction
        for point in path.points:
            assert point.bounds["linearised"] == pytest.approx(point.linear_risk.value + slack[1.0], abs=1e-9)


def test_the_numbers_can_be_written_and_read(reports):
    from diagnostics.folder import as_json

    content = json.loads(as_json(reports["best"]))
    assert content["settings"]["beta"] == ["best"]
    assert content["merges"][0]["bound"]["slack"]["rows"][0]["c"] == 0
