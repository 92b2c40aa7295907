"""``reproduce`` on small suites in the published formats: rows, numbers, what is kept, sweeps and the ablation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bounds.types import InputError
from merging import merge, presets, suites
from merging.commands import measure, reproduce
from merging.commands.merge import main as merging
from merging.commands.reproduce import Command, main, plan
from merging.suites import published
from merging.task import mean_accuracy
from tests import published_world as world

TA8 = "clip-ta8:ViT-B-32"
METHODS = ["--methods", "average", "task_arithmetic", "ties"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    folder = world.save_clip_suite(tmp_path_factory.mktemp("hub"), "clip-tall14")
    return world.save_glue(folder)


@pytest.fixture
def runs(hub, monkeypatch, tmp_path):
    """Measure in this process, on suites that are loaded once, and note what is measured."""
    world.use(monkeypatch, hub, tmp_path)
    monkeypatch.setattr(published, "SIZES", world.SIZES)
    measured, loaded, load = [], {}, suites.load

    def once(name, storage=None):
        if name not in loaded:
            loaded[name] = load(name, storage)
        return loaded[name]

    def here(spec, origin, threads, device="cpu", checkpoint=None, scores=None):
        measured.append(spec)
        return measure.measure(spec, origin, threads, device, checkpoint, scores)

    monkeypatch.setattr(suites, "load", once)
    monkeypatch.setattr(reproduce, "measure_apart", here)
    return measured


def read(out: Path) -> dict:
    return json.loads((out / "reproduce.json").read_text(encoding="utf-8"))


def test_samerging_stands_beside_the_published_numbers(runs, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["ta8", *METHODS, "--steps", "2", "--seeds", "0", "1", "--out", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"7 runs, of which 0 are kept in {out / 'results'}; 7 to go" in shown
    assert "FusionBench" in shown
    rows = {row["label"]: row for row in read(out)["rows"]}
    assert list(rows) == ["pretrained", "experts", "average", "task_arithmetic", "ties", "samerging"]
    assert [row["published"] for row in rows.values()] == [48.1, 90.4, 66.5, 68.0, 72.2, 87.1]
    suite = suites.load(TA8)
    average = 100 * mean_accuracy(suite.tasks, merge("average", suite).merged, "test")
    assert rows["average"]["mean"] == pytest.approx(average)
    assert rows["average"]["difference"] == pytest.approx(average - 66.5)
    assert rows["average"]["spread"] is None
    paper = presets.PRESETS["samerging"]["paper"].settings
    ours = [merge("samerging", suite, **{**paper, "steps": 2, "seed": seed}) for seed in (0, 1)]
    means = [100 * mean_accuracy(suite.tasks, found.merged, "test") for found in ours]
    assert rows["samerging"]["mean"] == pytest.approx(sum(means) / 2)
    assert [settings["seed"] for settings in rows["samerging"]["settings"]] == [0, 1]
    assert rows["samerging"]["settings"][0]["perturbation"] == "coefficients-adaptive"
    text = (out / "reproduce.md").read_text(encoding="utf-8")
    assert f"|  | average | 66.5 | {average:.1f} | {average - 66.5:+.1f} | 1 |" in text
    assert "| row | sun397 | stanford-cars |" in text
    assert not list((out / "results").glob("*.checkpoint"))


def test_a_second_run_measures_only_what_is_missing(runs, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["ta8", "--methods", "average", "--steps", "2", *out]) == 0
    before = read(tmp_path / "out")
    next((tmp_path / "out" / "results").glob("average-*")).unlink()
    runs.clear()
    assert main(["ta8", "--methods", "average", "ties:density=0.3", "--steps", "2", *out]) == 0
    assert "5 runs, of which 3 are kept" in capsys.readouterr().out
    assert [spec.label for spec in runs] == ["average", "ties:density=0.3"]
    rows = {row["label"]: row for row in read(tmp_path / "out")["rows"]}
    assert rows["ties:density=0.3"]["published"] is None, "other settings than the published ones"
    assert [rows[row["label"]]["mean"] for row in before["rows"]] == [row["mean"] for row in before["rows"]]


def test_a_learned_merge_that_was_killed_goes_on_from_its_last_steps(runs, tmp_path, monkeypatch):
    arguments = ["ta8", "--methods", "none", "--steps", "14", "--out", str(tmp_path / "out")]
    whole = reproduce.measure_apart

    def killed(spec, *rest, **named):
        if spec.method == "samerging":
            found = whole(replace(spec, given={**spec.given, "steps": 10}), *rest, **named)
            assert not found.reason
            raise InputError("the process was killed")
        return whole(spec, *rest, **named)

    monkeypatch.setattr(reproduce, "measure_apart", killed)
    assert main(arguments) == 2
    assert len(list((tmp_path / "out" / "results").glob("*.checkpoint"))) == 1
    monkeypatch.setattr(reproduce, "measure_apart", whole)
    assert main(arguments) == 0
    suite = suites.load(TA8)
    paper = presets.PRESETS["samerging"]["paper"].settings
    straight = merge("samerging", suite, **{**paper, "steps": 14, "seed": 0}).merged
    row = read(tmp_path / "out")["rows"][-1]
    assert row["mean"] == pytest.approx(100 * mean_accuracy(suite.tasks, straight, "test"))
    assert not list((tmp_path / "out" / "results").glob("*.checkpoint"))


def test_the_sweep_of_examples_and_the_ablation(runs, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    arguments = ["tall14", "--methods", "none", "--steps", "1", "--examples", "4", "16", "--ablate", *out]
    assert merging(["reproduce", *arguments]) == 0
    rows = read(tmp_path / "out")["rows"]
    labels = [(row["part"], row["label"]) for row in rows if row["part"] != "beside"]
    assert labels == [
        ("examples", "4 examples"),
        ("examples", "16 examples"),
        *(("ablation", f"{o}, {p}") for o in ("kl", "entropy") for p in ("no SAM", "SAM")),
    ]
    assert len(read(tmp_path / "out")["tasks"]) == 14
    assert [row["published"] for row in rows[:3]] == [56.9, 89.3, None]
    few = rows[3]["settings"][0]
    assert (few["examples"], few["batch"], few["cached"]) == (4, 4, 1)
    assert len([spec for spec in runs if spec.method == "samerging"]) == 6, "kl with SAM is the method itself"
    assert rows[8]["mean"] != rows[5]["mean"] or rows[8]["settings"] != rows[5]["settings"]


def test_scores_come_back_from_another_device(runs, tmp_path):
    for device in ("cpu", "cpu:0"):
        out = ["--out", str(tmp_path / device), "--device", device]
        assert main(["ta8", "--methods", "average", "--steps", "2", *out]) == 0
    first, second = (read(tmp_path / device)["rows"] for device in ("cpu", "cpu:0"))
    assert first == second
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "cpu:0" / "results").glob("*.json"))]
    other = [json.loads(path.read_text()) for path in sorted((tmp_path / "cpu" / "results").glob("*.json"))]
    assert [k["measurement"]["kl"] for k in kept] == [o["measurement"]["kl"] for o in other]


def test_a_suite_of_texts(runs, tmp_path):
    arguments = ["glue7", "--methods", "average", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    content = read(tmp_path / "out")
    assert content["tasks"] == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
    assert {row["published"] for row in content["rows"]} == {None}


def test_the_plan_of_the_paper():
    rows = {
        (row.part, row.label): row for row in plan(Command(suite="ta8", examples=(4, 16, 160, 1600), ablate=True), TA8)
    }
    paper = rows["beside", "samerging"].specs[0].settings
    assert (paper["steps"], paper["batch"], paper["cached"], paper["examples"]) == (1000, 16, 100, None)
    assert paper["batch"] * paper["cached"] == published.SIZES.calibration == 1600
    assert rows["examples", "1600 examples"].specs == rows["beside", "samerging"].specs
    shapes = [rows["examples", f"{k} examples"].specs[0].settings for k in (4, 16, 160)]
    assert [(s["examples"], s["batch"], s["cached"]) for s in shapes] == [(4, 4, 1), (16, 16, 1), (160, 16, 10)]
    assert rows["ablation", "kl, SAM"].specs == rows["beside", "samerging"].specs
    assert rows["ablation", "entropy, no SAM"].specs[0].settings["objective"] == "entropy"
    every = plan(Command(suite="ta8", methods=tuple(reproduce.BESIDE)), TA8)
    assert {row.label: row.published for row in every} == published.NUMBERS[TA8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ta9"], "published suite: expected clip-ta8 or"),
        (["ta8", "--model", "ViT-H"], "model of clip-ta8: expected ViT-B-32 or"),
        (["ta8", "--methods", "tie"], "method"),
        (["ta8", "--methods", "ties:densty=1"], "setting of ties: expected NAME=VALUE of scale or density"),
        (["ta8", "--examples", "0"], "--examples: expected at least 1; got 0"),
        (["ta8", "--steps", "0"], "steps: expected at least 1; got 0"),
        (["ta8", "--device", "nowhere"], "device: expected a device of this machine"),
        (["ta8"], "suite clip-ta8:ViT-B-32: expected its files in"),
    ],
)
def test_what_cannot_be_done_is_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    out = ["--out", str(tmp_path / "out"), "--from", str(tmp_path / "hub")]
    monkeypatch.setenv("MERGEBOUND_HUB", "")
    assert main([*arguments, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
