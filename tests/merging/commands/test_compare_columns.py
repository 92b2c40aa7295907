"""A comparison of a suite with a label at every token: ranked and shown by perplexity, with errors over documents."""

import csv
import json
import math

import pytest
import torch

from merging import merge
from merging.commands import compare, measure
from merging.commands.compare import Command
from merging.commands.measure import Spec, shares
from merging.commands.packed import unpack
from merging.suites import toy
from tests.sequences_world import world

NAME = "tests.sequences_world:suite"


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """A comparison that is measured in this process."""

    def here(spec, suite_name, threads, scores):
        return measure.measure(spec, suite_name, threads, scores=scores)

    monkeypatch.setattr(compare, "measure_apart", here)
    methods = ("average", "task_arithmetic:scale=0.7", "samerging:steps=2,examples=8,batch=4", "tangent")
    return compare.compare(Command(suite=NAME, methods=methods, out=tmp_path, seeds=2))


def loss_of(theta):
    return sum(task.measured(theta, "test").loss for task in world().tasks) / 2


def test_rows_are_ranked_by_perplexity_and_shown_everywhere(shown, tmp_path):
    suite = world()
    rows = {row.label: row for row in shown.rows}
    average = merge("average", suite).merged
    found = rows["average"]
    assert found.mean is not None
    assert found.mean.value == pytest.approx(-loss_of(average))
    assert list(found.losses) == pytest.approx([task.measured(average, "test").loss for task in suite.tasks])
    ranked = [row for row in shown.rows if row.rank is not None]
    losses = [sum(row.losses) for row in ranked]
    assert losses == sorted(losses)
    assert "one row of scores for an example" in rows["tangent"].reason
    pretrained, experts = (sum(rows[name].losses) / 2 for name in ("pretrained", "experts"))
    assert found.gain is not None
    assert found.gain.value == pytest.approx((pretrained - loss_of(average)) / (pretrained - experts))
    lines = {
        line["method"]: line for line in csv.DictReader((tmp_path / "compare.csv").read_text("utf-8").splitlines())
    }
    assert lines["average"]["perplexity"] == f"{math.exp(loss_of(average)):.2f}"
    assert lines["average"]["first"] == f"{math.exp(found.losses[0]):.2f}"
    assert float(lines["experts"]["KL"]) == 0
    assert float(lines["average"]["cross-entropy ± with test examples"]) > 0
    markdown = (tmp_path / "compare.md").read_text("utf-8")
    assert "## test perplexity on sequences" in markdown
    assert "accuracy" not in markdown
    assert "nats a token" in (tmp_path / "compare.svg").read_text("utf-8")
    assert json.loads((tmp_path / "compare.json").read_text("utf-8"))["rows"][0]["losses"]


def test_what_a_document_adds_is_kept_and_gives_the_error_over_documents(shown, tmp_path):
    suite = world()
    task, theta = suite.tasks[1], merge("average", suite).merged
    key = Spec("average").key(suite)
    kept = compare.read_kept(tmp_path / "results" / f"average-{key}.json", key)
    assert kept is not None
    measured = task.measured(theta, "test")
    values = unpack(kept.correct[1])
    assert torch.equal(values, shares(measured))
    assert float(values.mean()) == pytest.approx(-measured.loss)
    (row,) = (row for row in shown.rows if row.label == "average")
    assert row.sampled is not None
    both = [unpack(text) for text in kept.correct]
    assert row.sampled.stderr == pytest.approx(math.sqrt(sum(float(v.var()) / len(v) for v in both)) / 2)


def test_experts_events_are_kept_with_their_positions(shown, tmp_path):
    (path,) = tmp_path.glob("results/expert_scores-*.safetensors")
    before = path.read_bytes()
    found = measure.expert_scores(world(), lambda task: task, "cpu", tmp_path / "results")
    assert path.read_bytes() == before
    for task, taught in zip(world().tasks, found, strict=True):
        index = world().task_vectors.names.index(task.name)
        again = task.taught(world().task_vectors.expert(index), task.test.inputs, "test", top_k=64)
        assert torch.equal(taught.scores, again.scores)
        assert taught.positions is not None
        assert again.positions is not None
        assert torch.equal(taught.positions.counted, again.positions.counted)
        assert taught.positions.classes is None, "the world has fewer classes than are kept"


def test_a_setting_of_sequences_alone_is_no_part_of_other_suites_keys():
    few, many = (Spec("samerging", {"top_k": k}) for k in (2, 4))
    assert few.key(toy.build()) == many.key(toy.build())
    assert few.key(world()) != many.key(world())
