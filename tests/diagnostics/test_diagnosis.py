"""The diagnosis: words against exact enumeration, changes against merges written out, advice against following it."""

import dataclasses
import itertools
import json
import math
import shlex
from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from bounds.types import Estimate, InputError
from diagnostics import bound_report
from diagnostics.cli import main as mergebound
from diagnostics.diagnosis import (
    HURT,
    NEUTRAL,
    SERVED,
    Advice,
    Candidate,
    Trial,
    coefficient_map,
    layer_groups,
    sign_test,
    verdicts,
    worth_trying,
)
from diagnostics.report import build
from diagnostics.sections import diagnosis
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import TaskVectors, load_suite, merge
from merging.artifact import load, save
from merging.commands.merge import main as merging
from merging.commands.paired import holm
from merging.editing import Edit, edited
from merging.params import partition
from merging.suites import Suite, toy
from merging.task import mean_accuracy

SMALL = Settings(held_out=24, kernel=12, train=30, draws=8, points=3)


def space(suite, *artifacts, settings=SMALL, cache=None):
    subjects = [Subject(f"{i}-{a.method}", f"{i}.pt", a) for i, a in enumerate(artifacts)]
    return Workspace(subjects, lambda: suite, settings, Cache(cache))


def diagnosed(suite, artifact, settings=SMALL):
    workspace = space(suite, artifact, settings=settings)
    return diagnosis.compute(workspace, workspace.subjects[0])


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def learned(suite):
    return merge("samerging", suite, steps=10, examples=8, batch=4, granularity="tensor")


def noisy(size=3.0):
    """The toy world with noise in place of the second expert."""
    suite = toy.build(overlap=0.3)
    generator = torch.Generator().manual_seed(0)
    deltas = [dict(delta) for delta in suite.task_vectors.deltas]
    deltas[1] = {k: size * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in deltas[1].items()}
    vectors = TaskVectors(suite.task_vectors.base, deltas, suite.task_vectors.names)
    return Suite("noisy", vectors, suite.tasks, sources={"noisy": "seed 0"})


def right(suite, theta, split="validation"):
    found = []
    for task in suite.tasks:
        sample = getattr(task, split)
        found.append(task.forward(theta, sample.inputs).argmax(1) == sample.labels)
    return found


# Words ---------------------------------------------------------------------------------------------------------------


def test_the_sign_test_is_the_sum_over_all_outcomes():
    for won, lost in itertools.product(range(6), repeat=2):
        n, least = won + lost, min(won, lost)
        outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        as_uneven = Fraction(sum(min(heads, n - heads) <= least for heads in outcomes), len(outcomes))
        assert sign_test(won, lost) == pytest.approx(float(as_uneven))
    for won, lost in ((40, 17), (0, 9), (300, 250), (4000, 4300)):
        assert sign_test(won, lost) == pytest.approx(binomtest(won, won + lost).pvalue, rel=1e-9)
    with pytest.raises(InputError, match="discordant"):
        sign_test(-1, 2)


def test_the_words_err_at_most_at_the_level_and_without_the_correction_they_do_not():
    """Eight tasks to which nothing happened: a wrong word in at most 5 % of worlds; uncorrected (a mutant), in more."""
    generator = torch.Generator().manual_seed(0)
    wrong = mutant = 0
    worlds = 500
    for _ in range(worlds):
        pairs = torch.rand(2, 8, 120, generator=generator) < 0.7
        p = [sign_test(int((m & ~b).sum()), int((b & ~m).sum())) for b, m in zip(*pairs, strict=True)]
        wrong += min(holm(p)) <= 0.05
        mutant += min(p) <= 0.05
    assert wrong / worlds <= 0.05
    assert mutant / worlds > 0.15


def test_verdicts_say_what_was_counted():
    base = torch.tensor([True] * 40 + [False] * 60)
    good, bad = base.clone(), base.clone()
    good[50:80] = True
    good[0] = False
    bad[:20] = False
    expert = torch.ones(100, dtype=torch.bool)
    found = verdicts(["a", "b", "c", "d"], [base] * 4, [expert] * 3 + [base], [good, bad, base, good], 0.05)
    assert [v.word for v in found] == [SERVED, HURT, NEUTRAL, SERVED]
    first = found[0]
    assert (first.won, first.lost) == (30, 1)
    assert first.difference.value == pytest.approx(0.29)
    differences = [1.0] * 30 + [-1.0] + [0.0] * 69
    mean = sum(differences) / 100
    variance = sum((d - mean) ** 2 for d in differences) / 99
    assert first.difference.stderr == pytest.approx(math.sqrt(variance / 100))
    unpaired = math.hypot(first.merge.stderr, first.pretrained.stderr)
    assert first.difference.stderr < 0.8 * unpaired, "pairing is worth something here"
    assert first.recovered is not None
    assert first.recovered.value == pytest.approx(0.29 / 0.6)
    assert found[3].recovered is None, "this expert gains nothing"


# What leaving something out changes --------------------------------------------------------------------------------


def test_changes_are_those_of_merges_written_out(suite):
    artifact = merge("task_arithmetic", suite, scale=0.8)
    found = diagnosed(suite, artifact)
    assert found.split == "validation"
    assert found.examples == (30, 30, 30)
    before = right(suite, artifact.merged)
    base, deltas = suite.task_vectors.base, suite.task_vectors.deltas
    for j, change in enumerate(found.without):
        theta = {k: v + 0.8 * sum(d[k] for i, d in enumerate(deltas) if i != j) for k, v in base.items()}
        differences = [a.double() - b.double() for a, b in zip(right(suite, theta), before, strict=True)]
        assert [c.value for c in change.tasks] == pytest.approx([float(d.mean()) for d in differences])
        assert [c.stderr for c in change.tasks] == pytest.approx([float(d.std()) / math.sqrt(30) for d in differences])
        assert change.mean.value == pytest.approx(sum(float(d.mean()) for d in differences) / 3)
    for row in found.scales:
        theta = {k: base[k] + row.scale * (v - base[k]) for k, v in artifact.merged.items()}
        after = [float(r.double().mean()) for r in right(suite, theta)]
        mine = [c.value + float(b.double().mean()) for c, b in zip(row.change.tasks, before, strict=True)]
        assert mine == pytest.approx(after)
    assert any(c.value for change in found.without for c in change.tasks), "something changes here"


def test_an_expert_that_does_nothing_changes_nothing_exactly(suite):
    vectors = suite.task_vectors
    deltas = [*vectors.deltas[:2], {k: torch.zeros_like(v) for k, v in vectors.base.items()}]
    idle = Suite("idle", TaskVectors(vectors.base, deltas, vectors.names), suite.tasks)
    found = diagnosed(idle, merge("task_arithmetic", idle, scale=0.5))
    assert [(c.value, c.stderr) for c in found.without[2].tasks] == [(0, 0)] * 3


def test_layers_at_the_base_are_measured_group_by_group(suite):
    vectors = suite.task_vectors
    deltas = [
        {k: v + 0.2 * torch.sin(torch.arange(v.numel())).view_as(v) for k, v in d.items()} for d in vectors.deltas
    ]
    renamed = {"blocks.0.weight": "first.weight", "blocks.1.weight": "second.weight"}

    def named(params):
        return {new: params[old] for new, old in renamed.items()}

    def forward_of(task):
        return lambda params, inputs: task.forward({old: params[new] for new, old in renamed.items()}, inputs)

    tasks = [task.changed(forward=forward_of(task)) for task in suite.tasks]
    deep = Suite("deep", TaskVectors(named(vectors.base), [named(d) for d in deltas], vectors.names), tasks)
    artifact = merge("average", deep)
    found = diagnosed(deep, artifact)
    assert [row.group.name for row in found.layers] == ["blocks.0", "blocks.1"]
    assert sum(row.group.share for row in found.layers) == pytest.approx(1)
    for row, name in zip(found.layers, renamed, strict=True):
        theta = {**artifact.merged, name: deep.task_vectors.base[name]}
        before, after = right(deep, artifact.merged), right(deep, theta)
        expected = [float(a.double().mean() - b.double().mean()) for a, b in zip(after, before, strict=True)]
        assert [c.value for c in row.change.tasks] == pytest.approx(expected)


@pytest.mark.parametrize(("count", "groups"), [(30, 12), (12, 12), (5, 5), (1, 0)])
def test_layers_form_at_most_twelve_groups_of_neighbours(count, groups):
    params = {f"h.{i}.{part}": torch.ones(2) for i in range(count) for part in ("w", "b")}
    params["still"] = torch.zeros(3)
    blocks = partition(params, "block")
    found = layer_groups(blocks, params)
    assert len(found) == groups
    named = [name for group in found for pattern in group.patterns for name in params if name.startswith(pattern[:-1])]
    assert named == ([name for name in params if name != "still"] if groups else [])
    if count > 12:
        assert {len(group.patterns) for group in found} == {2, 3}
        assert found[0].name == "h.0 to h.1"


def test_without_a_validation_split_the_test_split_is_described_and_nothing_is_advised():
    world = noisy()
    bare = Suite("bare", world.task_vectors, [task.changed(validation=None) for task in world.tasks])
    found = diagnosed(bare, merge("average", bare))
    assert found.split == "test"
    assert found.examples == (48, 48, 48)
    assert found.advice == ()
    assert "no validation split" in found.missing["what to try"]
    assert found.without


def test_what_cannot_be_left_out_is_named_and_all_else_is_there(suite, learned):
    bare = dataclasses.replace(learned, coefficients=None, blocks=None)
    workspace = space(suite, bare)
    report = build(workspace, ("diagnosis",))
    found = report.merges[0].diagnosis
    assert found.without == ()
    assert found.coefficients is None
    assert "neither" in found.missing["leaving out an expert"]
    assert any("leaving out an expert" in name for name in report.provenance.missing)
    assert len(found.tasks) == 3
    assert "hurts it most" not in report.verdict[0]


@pytest.mark.parametrize(("count", "method", "reason"), [(1, "average", "fewer than all"), (2, "slerp", "2 experts")])
def test_few_experts(suite, count, method, reason):
    names = list(suite.task_vectors.names)[:count]
    few = Suite("few", suite.task_vectors.of_experts(names), suite.tasks[:count], sources=suite.sources)
    workspace = space(few, merge(method, few))
    report = build(workspace, ("diagnosis",))
    found = report.merges[0].diagnosis
    assert reason in found.missing["leaving out an expert"]
    assert found.without == ()
    assert report.verdict[0].startswith(f"Of {count} task")
    assert len(found.scales) == 2
    assert found.tried == len(found.layers) + 3


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("refused"), "refused"),
        (torch.linalg.LinAlgError("singular"), "_LinAlgError: singular"),  # pyright: ignore[reportPrivateImportUsage]
        (MemoryError("2 GB"), "MemoryError: 2 GB"),
        (KeyError("typo"), None),
    ],
)
def test_a_trial_that_fails_costs_no_more_but_a_mistake_of_the_code_is_not_taken_for_one(
    suite, learned, monkeypatch, error, told
):
    def fails(*_):
        raise error

    monkeypatch.setattr(diagnosis, "measured", fails)
    missing, workspace = {}, space(suite, learned)
    subject = workspace.subjects[0]
    if told is None:
        with pytest.raises(KeyError):
            diagnosis._measured(workspace, subject, [], "what", missing)
    else:
        assert diagnosis._measured(workspace, subject, [], "what", missing) == []
        assert missing == {"what": told}


# λ ------------------------------------------------------------------------------------------------------------------


def test_coefficients_stand_in_order_of_depth_with_the_loss(suite, learned):
    mixed = dict(reversed(learned.blocks.items()))
    turned = dataclasses.replace(learned, blocks=mixed, coefficients=learned.coefficients.flip(1))
    for artifact in (learned, turned):
        found = coefficient_map(artifact, list(suite.task_vectors.base))
        assert found is not None
        assert found.blocks == ("first.weight", "second.weight")
        assert torch.equal(torch.tensor(found.values, dtype=torch.float64), learned.coefficients.double())
        assert found.loss == tuple(learned.history["loss"])
    long = dataclasses.replace(learned, history={"loss": [float(i) for i in range(1001)]})
    found = coefficient_map(long, list(suite.task_vectors.base))
    assert found is not None
    assert len(found.steps) <= 200
    assert found.loss == tuple(map(float, found.steps))
    assert coefficient_map(dataclasses.replace(learned, coefficients=None, blocks=None), []) is None


# What to try --------------------------------------------------------------------------------------------------------


def candidate(value, stderr, name="a"):
    return Candidate(f"leave out {name}", "reason", Trial(examples=9, edit=Edit((name,))), Estimate(value, stderr, 9))


def test_a_line_is_kept_only_beyond_the_error_of_all_that_was_tried():
    z = {1: 1.6449, 20: 2.8070}  # normal quantiles at 1 - .05 and 1 - .05/20, from tables
    for count, quantile in z.items():
        rest = [candidate(-1.0, 0.1)] * (count - 1)
        for factor, kept in ((1.01, 1), (0.99, 0)):
            found = worth_trying([candidate(factor * quantile * 0.02, 0.02), *rest], 0.05, "toy")
            assert len(found) == kept
            assert all(line.looked_at == count + 1 for line in found)
    many = [candidate(0.1 + i / 100, 0.001, str(i)) for i in range(9)]
    assert [line.text for line in worth_trying(many, 0.05, "toy")] == [f"leave out {i}" for i in (8, 7, 6, 5, 4)]
    assert worth_trying([], 0.05, "toy") == ()


def test_nothing_is_advised_where_nothing_is_better():
    """Candidates that change nothing in truth: a line in at most 5 % of worlds; by two errors alone, in more."""
    generator = torch.Generator().manual_seed(0)
    lines = mutant = 0
    for _ in range(400):
        values = torch.randint(-1, 2, (12, 300), generator=generator).double()
        tried = [dataclasses.replace(candidate(0, 0), change=Estimate.of_mean(v)) for v in values]
        lines += bool(worth_trying(tried, 0.05, "toy"))
        mutant += any(c.change.value > 2 * c.change.stderr for c in tried)
    assert lines / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert mutant / 400 > 0.15


def test_a_merge_with_a_noisy_expert_names_it_and_what_to_do_about_it():
    world = noisy()
    artifact = merge("average", world)
    workspace = space(world, artifact)
    report = build(workspace, ("diagnosis",))
    found = report.merges[0].diagnosis
    assert "the expert that hurts it most is task1" in report.verdict[0]
    (first,) = [line for line in found.advice if line.trial.edit == Edit(without=("task1",))]
    better = edited(artifact, world, first.trial.edit)
    gain = [mean_accuracy(world.tasks, a.merged, "validation") for a in (artifact, better)]
    assert gain[1] - gain[0] == pytest.approx(first.change.value)
    assert gain[1] - gain[0] > 2 * first.change.stderr
    on_test = [mean_accuracy(world.tasks, a.merged, "test") for a in (artifact, better)]
    assert on_test[1] > on_test[0], "examples that nothing was chosen on"


def test_advice_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    """On the suite toy, from its files: every command printed makes a merge that is better by what is printed."""
    monkeypatch.chdir(tmp_path)
    assert merging(["--method", "task_arithmetic", "--scale", "-1", "--suite", "toy", "--out", "a b.pt"]) == 0
    assert bound_report.main(["--merged", "a b.pt", "--sections", "diagnosis", "--workers", "1"]) == 0
    assert "try: " in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    found = bound_report.read_report(tmp_path / "report" / "report.json").merges[0].diagnosis
    assert found.advice
    suite = toy.build()
    before = mean_accuracy(suite.tasks, load("a b.pt").merged, "validation")
    for line in found.advice:
        command = line.command("a b.pt")
        assert command.replace("'", "&#39;") in page
        program, *arguments = shlex.split(command)
        assert program == "mergebound"
        assert mergebound(arguments) == 0
        after = mean_accuracy(suite.tasks, load("better.pt").merged, "validation")
        assert after - before == pytest.approx(line.change.value)
        assert load("better.pt").used == {**(load("better.pt").used or {}), "validation": found.tried + 1}
    assert {bool(line.trial.method) for line in found.advice} == {True, False}


def test_commands_of_merges_in_memory_are_python(suite):
    artifact = merge("average", suite)
    shared: dict[str, Any] = {"reason": "", "text": "", "change": Estimate(1.0), "looked_at": 3}
    edit = Advice(trial=Trial(examples=2, edit=Edit(("task1",))), suite="", **shared)
    other = Advice(trial=Trial(examples=2, method="task_arithmetic", settings={"scale": 0.3}), suite="", **shared)
    names: dict[str, Any] = {"artifact": artifact, "suite": suite}
    for line, expected in (
        (edit, edited(artifact, suite, Edit(("task1",)))),
        (other, merge("task_arithmetic", suite, scale=0.3)),
    ):
        exec(line.command("in memory"), names)
        better = names["better"]
        assert torch.equal(better.merged["first.weight"], expected.merged["first.weight"])
        assert line.command("out.pt") == line.command("in memory"), "no suite can be found again from a file either"


def test_on_mini8_advice_does_what_it_says():
    """A merge at too large a scale, on few examples of each split: half a minute."""
    whole = load_suite("mini8")
    few = slice(60)
    tasks = [task.changed(test=task.test.take(few), validation=task.validation.take(few)) for task in whole.tasks]
    suite = Suite("mini8, few examples", whole.task_vectors, tasks, sources=whole.sources)
    artifact = merge("task_arithmetic", suite, scale=1.0)
    workspace = space(suite, artifact, settings=dataclasses.replace(SMALL, left_out=60, layer_examples=10))
    report = build(workspace, ("diagnosis",))
    found = report.merges[0].diagnosis
    assert found.tried == 8 + len(found.layers) + 2 + 1
    assert found.advice[0].trial.edit.scale == 0.7 or found.advice[0].trial.method
    worst = min(found.tasks, key=lambda task: task.difference.value)
    assert f"worst is {worst.name}" in report.verdict[0]
    best = max(whole.task_vectors.names, key=lambda name: _gain(found, suite, worst.name, name))
    assert f"hurts it most is {best}" in report.verdict[0]
    line = found.advice[0]
    trial = line.trial
    better = merge(trial.method, suite, **trial.settings) if trial.method else edited(artifact, suite, trial.edit)
    gain = [mean_accuracy(suite.tasks, a.merged, "validation") for a in (artifact, better)]
    assert gain[1] - gain[0] == pytest.approx(line.change.value, abs=2 / 400)  # ties of scores in other batches
    assert gain[1] - gain[0] > 2 * line.change.stderr


def _gain(found, suite, task, expert):
    names = list(suite.task_vectors.names)
    return found.without[names.index(expert)].tasks[names.index(task)].value


# Cache and page -------------------------------------------------------------------------------------------------------


def test_kept_trials_are_used_again_and_other_settings_are_not_taken_for_them(suite, learned, tmp_path):
    first = build(space(suite, learned, cache=tmp_path / "c"), ("diagnosis",)).merges[0].diagnosis
    again = build(space(suite, learned, cache=tmp_path / "c"), ("diagnosis",))
    assert again.merges[0].diagnosis == first
    assert "0-samerging: diagnosis" not in again.provenance.seconds
    few = dataclasses.replace(SMALL, left_out=10)
    other = build(space(suite, learned, settings=few, cache=tmp_path / "c"), ("diagnosis",)).merges[0].diagnosis
    assert other.examples == (10, 10, 10)
    assert other == build(space(suite, learned, settings=few), ("diagnosis",)).merges[0].diagnosis
    assert other.without != first.without


def test_a_command_names_the_file_of_today_also_where_the_numbers_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(merge("task_arithmetic", load_suite("toy"), scale=-1.0), "a.pt")
    arguments = ["--sections", "diagnosis", "--workers", "1"]
    assert bound_report.main(["--merged", "a.pt", *arguments]) == 0
    (tmp_path / "a.pt").rename("b.pt")
    assert bound_report.main(["--merged", "b.pt", *arguments]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "edit b.pt" in page
    assert "edit a.pt" not in page


def test_the_page_says_words_and_scales_of_the_sweep(suite, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(merge("samerging", load_suite("toy"), steps=5, examples=8, batch=4), "a.pt")
    quick = ["--held-out", "24", "--kernel", "12", "--train", "30", "--draws", "8", "--points", "5"]
    arguments = ["--merged", "a.pt", "--sections", "diagnosis", "sweep", "--workers", "1", *quick]
    assert bound_report.main(arguments) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["merges"][0]
    for task in content["diagnosis"]["tasks"]:
        assert f'<th scope="row">{task["name"]}</th><td class="text word">' in page
    points = content["sweep"]["paths"][0]["points"]
    for index, name in enumerate(("task0", "task1", "task2")):
        best = min(points, key=lambda p: p["task_risks"][index])["s"]
        rows = [row for row in page.split("<tr>") if row.startswith(f'<th scope="row">{name}</th>')]
        wish = "larger" if best > 1 else "smaller" if best < 1 else "as it is"
        assert any(f'<td>{best:g}</td><td class="text">{wish}</td>' in row for row in rows)
    for p in points:
        assert sum(p["task_risks"]) / 3 == pytest.approx(p["risk"]["value"])
    for figure in ("without-1", "coefficients-1", "task_vectors-1"):
        assert (tmp_path / "report" / "figures" / f"{figure}.svg").is_file()


def test_a_method_whose_sums_exceed_the_memory_budget_is_not_tried(suite, monkeypatch):
    """Of a weight [m, n]: sums [n, n] and [n, m] in float64, products [n, n] in float32."""
    workspace = space(suite, merge("average", suite))
    matrices = [v.shape for v in suite.task_vectors.base.values() if v.ndim == 2]
    least = sum(8 * (n * n + n * m) + 4 * n * n for m, n in matrices)
    for budget, tried in ((least, ["regmean", "task_arithmetic"]), (least - 1, ["task_arithmetic"])):
        monkeypatch.setenv("MERGEBOUND_MEMORY_BYTES", str(budget))
        found = diagnosis._other_methods(workspace, workspace.subjects[0])
        assert [trial.method for trial in found] == tried
