"""The ablation: what is chosen on which split, resuming, paired differences, the command."""

import json
import statistics

import pytest

from diagnostics import ablation
from diagnostics.ablation import ROWS, Line, Row, ablate, cells, main, mean_and_error
from merging import merge
from merging.suites import toy
from merging.task import mean_accuracy

QUICK = ["--suite", "toy", "--seeds", "2", "--steps", "3", "--examples", "12"]


def command(tmp_path, **changes):
    return ablation.Command(**{"suite": "toy", "seeds": 2, "steps": 3, "examples": 12, "out": tmp_path, **changes})


def test_settings_are_chosen_on_validation_and_seeds_reported_on_test(tmp_path, monkeypatch):
    suite = toy.build(overlap=0.6)
    seen = []
    original = ablation.merge

    def noting(method, vectors, tasks, **settings):
        seen.append(settings)
        return original(method, vectors, tasks, **settings)

    monkeypatch.setattr(ablation, "merge", noting)
    lines = ablate(suite, command(tmp_path, steps=8))
    grids = sum(len(row.grid) for row in ROWS.values())
    assert [s["seed"] for s in seen] == [0] * grids + [1] * len(ROWS) + [2] * len(ROWS)
    for line in lines:
        settings = {key: value for key, value in line.settings.items()}
        values = {}
        for value in ROWS[line.name].grid:
            made = merge("samerging", suite.task_vectors, suite.tasks, **{**settings, line.chosen: value, "seed": 0})
            values[value] = mean_accuracy(suite.tasks, made.merged, "validation")
        assert line.validation == {str(value): pytest.approx(found) for value, found in values.items()}
        assert values[line.settings[line.chosen]] == max(values.values())
        made = merge("samerging", suite.task_vectors, suite.tasks, **settings, seed=2)
        assert line.test[1] == pytest.approx(mean_accuracy(suite.tasks, made.merged, "test"))
    assert len({line.settings["learning_rate"] for line in lines if line.settings["objective"] == "kl"}) == 1


def test_an_interrupted_ablation_goes_on_where_it_was(tmp_path, monkeypatch):
    suite, calls = toy.build(overlap=0.6), []
    original = ablation.merge

    def failing(*arguments, **settings):
        calls.append(settings)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(ablation, "merge", failing)
    with pytest.raises(KeyboardInterrupt):
        ablate(suite, command(tmp_path))
    assert len(list((tmp_path / "runs").iterdir())) == 4
    lines = ablate(suite, command(tmp_path))
    total = sum(len(row.grid) for row in ROWS.values()) + 2 * len(ROWS)
    assert len(calls) == 1 + total
    assert ablate(suite, command(tmp_path)) == lines
    assert len(calls) == 1 + total


def test_a_run_that_was_cut_short_is_done_again(tmp_path):
    suite = toy.build(overlap=0.6)
    lines = ablate(suite, command(tmp_path))
    damaged = next((tmp_path / "runs").iterdir())
    damaged.write_text(damaged.read_text()[:20])
    assert [line.test for line in ablate(suite, command(tmp_path))] == [line.test for line in lines]
    assert json.loads(damaged.read_text())["value"]["accuracy"]


def line(name, test):
    settings = {"learning_rate": 0.02, "rho": 0.07, "perturbation": "none", "objective": "kl"}
    return Line(name=name, settings=settings, chosen="learning_rate", validation={"0.02": 0.5}, test=test, seconds=1.0)


def test_differences_are_paired_by_seed():
    base, other = line("KL only", [0.5, 0.7, 0.9]), line("other", [0.51, 0.72, 0.91])
    mean, error = mean_and_error(other.difference(base))
    assert mean == pytest.approx(0.04 / 3)
    assert error == pytest.approx(statistics.stdev([0.01, 0.02, 0.01]) / 3**0.5)
    assert cells(other, base)[2:4] == ["71.33 ± 11.55", "+1.33 ± 0.33"]
    assert cells(base, base)[3] == ""


def test_the_command_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        ablation, "ROWS", {**ROWS, "KL + SAM (λ)": Row({"perturbation": "coefficients"}, "rho", (0.07,))}
    )
    assert main([*QUICK, "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [line["name"] for line in content["lines"]] == list(ROWS)
    assert all(len(line["test"]) == 2 for line in content["lines"])
    markdown = (tmp_path / "out" / "ablation.md").read_text()
    assert "--steps 3 --batch 8 --examples 12" in markdown
    for name in ROWS:
        assert f"| {name} |" in markdown
    assert "Ablation on toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--seeds", "1"], "seeds: expected at least 2"), (["--suite", "nowhere"], "suite"), (["--steps", "0"], "steps")],
)
def test_bad_options_are_refused_in_one_line(options, message, tmp_path, capsys):
    assert main([*QUICK, *options, "--out", str(tmp_path / "out")]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if not line.endswith("…"))  # how far it is
    assert message in error


def test_a_file_in_the_way_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([*QUICK, "--out", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"
    assert "expected a folder" in capsys.readouterr().err
