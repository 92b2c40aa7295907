"""Reports on tasks with scores at every position: figures of every domain, what is shown, what is left out and why."""

import html
import math
import re

import pytest
import torch
from scipy.stats import binomtest

from bounds.types import InputError
from diagnostics import report
from diagnostics.folder import as_json, read_report
from diagnostics.report import check_sections
from diagnostics.sections import tokens
from diagnostics.sections.table import SECTIONS
from diagnostics.sections.token_certificates import QUANTITIES
from merging import merge
from merging.sequences import IGNORED, perplexity
from merging.suites import Suite, toy
from tests.sequences_world import world

SERVED = ("tokens", "ledger", "distillation", "token_certificates", "geometry")
REFUSED = ("diagnosis", "bound", "heterogeneity", "flatness", "entk", "label_free", "sweep")


SCALES = {"half": 0.5, "slightly": 0.02, "away": -1.0}


def changed(suite, change):
    return Suite("changed", suite.task_vectors, [change(task) for task in suite.tasks], sources=suite.sources)


def dense(task, theta, split):
    """Per example: counted positions, right ones, cross-entropy; one position at a time."""
    sample, found = getattr(task, split), []
    scores = task.forward(theta, sample.inputs)
    for rows, labels in zip(scores, sample.labels, strict=True):
        losses, right = [], []
        for row, label in zip(rows, labels.tolist(), strict=True):
            if label != IGNORED:
                losses.append(float(torch.logsumexp(row, 0) - row[label]))
                right.append(int(row.argmax()) == label)
        found.append((losses, right))
    return found


@pytest.fixture(scope="module")
def padded():
    suite = world()
    merges = {name: merge("task_arithmetic", suite, scale=scale) for name, scale in SCALES.items()}
    return suite, merges, report(merges, suite)


@pytest.fixture(scope="module")
def packed():
    def with_bytes(task):
        return task.changed(text_bytes={"test": torch.arange(1, len(task.test) + 1)})

    suite = changed(world(padded=False), with_bytes)
    made = merge("average", suite)
    return suite, made, report(made, suite)


def test_figures_are_those_of_every_counted_position(padded):
    suite, merges, made = padded
    for row, task, index in zip(made.data.merges[0].tokens.tasks, suite.tasks, range(2), strict=True):
        models = {
            "pretrained": suite.task_vectors.base,
            "expert": suite.task_vectors.expert(index),
            "merged": merges["half"].merged,
        }
        for name, theta in models.items():
            found = dense(task, theta, "test")
            losses = [loss for one, _ in found for loss in one]
            right = [hit for _, one in found for hit in one]
            figures = row.models[name]
            assert figures.cross_entropy.value == pytest.approx(sum(losses) / len(losses))
            assert figures.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)))
            assert figures.accuracy.value == pytest.approx(sum(right) / len(right))
            means = [sum(one) / len(one) for one, _ in found]
            assert figures.by_example.value == pytest.approx(sum(means) / len(means))
            assert figures.by_example.value != pytest.approx(figures.cross_entropy.value), "lengths differ"
            assert figures.cross_entropy.n == len(task.test)
        assert row.tokens == len(losses)
        assert not row.one_length


def test_words_count_examples_and_differences_are_paired(padded):
    suite, merges, made = padded
    words = set()
    for merged in made.data.merges:
        rows = merged.tokens.tasks
        for row, task in zip(rows, suite.tasks, strict=True):
            before = dense(task, suite.task_vectors.base, "test")
            after = dense(task, merges[merged.label].merged, "test")
            change = [sum(a) / len(a) - sum(b) / len(b) for (a, _), (b, _) in zip(after, before, strict=True)]
            assert (row.won, row.lost) == (sum(c < 0 for c in change), sum(c > 0 for c in change))
            value = row.models["merged"].cross_entropy.value - row.models["pretrained"].cross_entropy.value
            assert row.difference.value == pytest.approx(value)
        assert merged.tokens.worst.difference.value == max(r.difference.value for r in rows)
        raw = [binomtest(row.won, row.won + row.lost).pvalue for row in rows]
        adjusted = [max(2 * min(raw), p) if p > min(raw) else 2 * p for p in raw]  # Holm's, of two
        assert [row.p_value for row in rows] == pytest.approx([min(1.0, p) for p in adjusted])
        for row in rows:
            told = row.p_value <= 0.05
            assert row.word == ("neutral" if not told else "served" if row.won > row.lost else "hurt below pretrained")
            words.add(row.word)
    assert words == {"neutral", "served", "hurt below pretrained"}, "the merges are chosen so that all are there"


@pytest.mark.parametrize(("large", "word"), [(0.1, "served"), (9.0, "neutral")])
def test_no_domain_is_served_whose_tokens_lose_in_the_mean(large, word):
    """Ten examples get better by .1; one gets worse, by as much or by far more than all of them gain."""
    before = torch.full((11,), 5.0, dtype=torch.float64)
    after = torch.tensor([4.9] * 10 + [5.0 + large], dtype=torch.float64)
    ones = torch.ones(11, dtype=torch.float64)
    models = {
        name: {"cross_entropy": losses, "positions": ones, "wrong": ones}
        for name, losses in (("pretrained", before), ("expert", before), ("merged", after))
    }
    row = tokens._verdict("news", 7, None, models, (10, 1), 0.01, 0.05)
    assert (row.word, row.recovered) == (word, None)


def test_the_share_of_the_gain_and_its_error_are_those_of_a_jackknife(padded):
    suite, merges, made = padded
    for row, task, index in zip(made.data.merges[0].tokens.tasks, suite.tasks, range(2), strict=True):
        thetas = (suite.task_vectors.base, suite.task_vectors.expert(index), merges["half"].merged)
        base, expert, merged = (torch.tensor([sum(a) for a, _ in dense(task, t, "test")]) for t in thetas)
        assert row.recovered.value == pytest.approx(float((base - merged).sum() / (base - expert).sum()))
        n = len(base)
        left = torch.stack([(base - merged)[torch.arange(n) != i].sum() for i in range(n)])
        left = left / torch.stack([(base - expert)[torch.arange(n) != i].sum() for i in range(n)])
        jackknife = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
        assert row.recovered.stderr == pytest.approx(jackknife, rel=0.25)


def test_packed_examples_have_one_mean_and_bits_are_those_of_their_bytes(packed):
    suite, made, report_of = packed
    for row, task in zip(report_of.data.merges[0].tokens.tasks, suite.tasks, strict=True):
        assert row.one_length
        figures = row.models["merged"]
        assert figures.by_example.value == pytest.approx(figures.cross_entropy.value)
        assert figures.by_example.stderr == pytest.approx(figures.cross_entropy.stderr)
        losses = sum(loss for one, _ in dense(task, made.merged, "test") for loss in one)
        assert figures.bits_per_byte == pytest.approx(losses / math.log(2) / float(task.text_bytes["test"].sum()))


def test_what_serves_is_there_and_what_does_not_says_why(padded):
    made = padded[2].data
    assert made.scored == "position"
    for merged in made.merges:
        assert [name for name in SECTIONS if getattr(merged, name) is not None] == list(SERVED)
    assert set(made.provenance.missing) == {*REFUSED, "comparison"}, "counterparts say the same: no line for these"
    for name in REFUSED:
        reason = made.provenance.missing[name]
        assert reason.startswith("it needs one row of scores for each example: ")
        assert "\n" not in reason
    text = " ".join(f"{line.name} {line.value} {line.how}" for line in made.assumptions)
    assert "tokens of one example not" in text
    assert "grid of σ" not in text


def test_the_page_the_text_and_the_json_show_it(padded, tmp_path, capsys):
    made = padded[2]
    page = made.save(tmp_path / "r").read_text(encoding="utf-8")
    ids = re.findall(r'<h2 id="([\w-]+)"', page)
    assert ids == [*SERVED[:1], "ledger", "distillation", "token_certificates", "geometry", "left-out", "assumptions",
                   "provenance"]  # fmt: skip
    assert 'href="#bound"' not in page
    words = html.unescape(re.sub(r"<[^>]*>|_", "", page))
    for name in REFUSED:
        assert SECTIONS[name].rests_on.replace("_", "").replace("f^lin", "flin") in words
    for row in made.data.merges[0].tokens.tasks:
        assert f"({row.models['merged'].perplexity:.3g})" in page
    again = read_report(tmp_path / "r" / "report.json")
    assert as_json(again) == as_json(made.data)
    divergence = made.data.merges[0].distillation.divergence
    assert f"KL(teacher ‖ merge) of a token: {divergence.total.value:.3f} ± " in page
    made.print()
    shown = " ".join(capsys.readouterr().out.split())
    assert "not computed: bound: it needs one row of scores" in shown
    assert "perplexity" in shown
    assert "Bretagnolle-Huber │ KL" in re.sub(r"[┃│]", "│", shown)


def test_the_ladder_is_of_whole_distributions_position_by_position(padded):
    suite, merges, made = padded
    found = made.data.merges[0].distillation
    for index, task in enumerate(suite.tasks):
        p, q = (
            task.forward(theta, task.test.inputs).log_softmax(-1)
            for theta in (suite.task_vectors.expert(index), merges["half"].merged)
        )
        divergence, kept = (p.exp() * (p - q)).sum(-1), task.test.labels != IGNORED
        means = [float(row[here].mean()) for row, here in zip(divergence, kept, strict=True)]
        assert found.divergence.per_task[index].value == pytest.approx(sum(means) / len(means))
        assert found.divergence.per_task[index].n == len(task.test)
    assert found.rungs[0].total.value <= found.rungs[1].total.value


def test_the_verdict_says_what_was_measured_and_certified(padded):
    made = padded[2].data
    losses = [row.models["merged"].cross_entropy.value for row in made.merges[0].tokens.tasks]
    sentence = made.verdict[0]
    assert f"{sum(losses) / 2:.3f} nats" in sentence
    assert f"perplexity {perplexity(sum(losses) / 2):.3g}" in sentence
    first = made.merges[0].token_certificates.rows[0]
    assert f"certified: {first.name}, at most {first.value:.3f} nats" in sentence
    assert first.name.startswith(QUANTITIES[0].name)


def test_sections_that_do_not_serve_are_refused_where_nothing_else_is_asked_for(padded):
    suite, merges, _ = padded
    with pytest.raises(InputError, match=r"expected tokens or ledger or .*got bound and sweep, for tasks with one row"):
        report(merges["half"], suite, sections=["bound", "sweep"])
    made = report(merges["half"], suite, sections=["bound", "geometry"]).data
    assert set(made.provenance.missing) == {"bound"}
    assert made.merges[0].geometry is not None


def test_classifiers_do_not_hear_of_tokens(tmp_path):
    suite = toy.build()
    made = report(merge("average", suite), suite, sections=["accuracy"])
    assert made.data.scored == "example"
    assert made.data.provenance.missing == {}
    page = made.save(tmp_path / "r").read_text(encoding="utf-8")
    assert 'id="tokens"' not in page
    assert 'id="left-out"' not in page
    with pytest.raises(InputError, match="got tokens, for tasks with one row of scores for every example"):
        report(merge("average", suite), suite, sections=["tokens"])
    assert set(SERVED) < set(check_sections([]))


def test_without_labels_the_ladder_is_left(padded):
    from diagnostics.settings import Settings

    suite, merges, made = padded
    bare = report(merges["half"], suite, settings=Settings(labels=False)).data
    assert bare.merges[0].tokens is None
    assert bare.merges[0].distillation is not None
    rungs = [r.merges[0].distillation.rungs[0].total for r in (bare, made.data)]
    assert rungs[0].n == rungs[1].n


def test_coefficients_and_geometry_are_those_of_the_weights(padded):
    suite, merges, made = padded
    found = made.data.merges[0].geometry
    base = suite.task_vectors.base
    moved = torch.cat([(merges["half"].merged[name] - base[name]).flatten() for name in base])
    assert found.distance == pytest.approx(float(moved.norm()))
    deltas = [torch.cat([delta[name].flatten() for name in base]).double() for delta in suite.task_vectors.deltas]
    assert found.vectors.norms == pytest.approx([float(delta.norm()) for delta in deltas])
    cosine = float(deltas[0] @ deltas[1] / deltas[0].norm() / deltas[1].norm())
    assert found.vectors.cosines[0][1] == pytest.approx(cosine)
