import dataclasses
import json
import os

import jsonschema
import matplotlib.image
import pytest
import torch

from bounds.types import InputError
from diagnostics import cli, serialise
from diagnostics.bound_report import main
from diagnostics.path import ntk_radius
from diagnostics.report import build, check_match
from diagnostics.settings import Settings
from merging import merge
from merging.artifact import load, save
from merging.suites import toy

QUICK = ["--kernel", "12", "--held-out", "24", "--train", "30", "--draws", "8", "--points", "5"]


def make(suite, **settings):
    return merge(
        "samerging",
        suite.task_vectors,
        suite.tasks,
        suite="toy",
        sources=suite.sources,
        **{"steps": 30, "examples": 16, **settings},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    save(make(toy.build()), folder / "out.pt")
    assert main(["--merged", str(folder / "out.pt"), "--out", str(folder / "report"), *QUICK]) == 0
    return folder


def content(folder):
    return json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))


def test_the_json_follows_the_published_schema(made):
    jsonschema.validate(content(made), json.loads(serialise.SCHEMA_FILE.read_text(encoding="utf-8")))


def test_terms_sum_to_the_value_and_corrected_is_linearised_plus_transfer(made):
    bounds = {b["reading"]: b for b in content(made)["bounds"]}
    for bound in bounds.values():
        assert sum(t["estimate"]["value"] for t in bound["terms"]) == pytest.approx(bound["value"])
        assert bound["vacuous"] == (bound["value"] >= bound["trivial_risk"])
    transfer = bounds["corrected"]["terms"][-1]
    assert transfer["name"] == "transfer error"
    assert bounds["corrected"]["value"] == pytest.approx(bounds["linearised"]["value"] + transfer["estimate"]["value"])
    assert bounds["linearised"]["status"] == "estimated"
    assert bounds["assumed-linear"]["status"] == "assumed"


def test_the_sweep_starts_at_the_base_passes_the_merge_and_bounds_the_risk(made):
    report = content(made)
    points = report["sweep"]["points"]
    assert [p["s"] for p in points] == [0, 0.5, 1, 1.5, 2]
    assert points[0]["transfer"]["value"] == pytest.approx(0, abs=1e-9)
    assert points[0]["residual"] == 0
    assert points[0]["linear_risk"] == pytest.approx(points[0]["risk"])
    assert points[2]["distance"] == pytest.approx(report["distance"])
    at_merge = {b["reading"]: b["value"] for b in report["bounds"]}
    assert points[2]["bounds"] == pytest.approx(at_merge)
    assert all(p["bounds"]["corrected"] > p["risk"]["value"] for p in points)


def test_figures_are_there_and_can_be_read(made):
    names = {"terms", "sweep", "cross_risk", "ladder"}
    assert {p.name for p in (made / "report").iterdir()} == {"report.json"} | {
        f"{n}.{s}" for n in names for s in ("png", "svg")
    }
    for name in names:
        assert matplotlib.image.imread(made / "report" / f"{name}.png").std() > 0.05


def test_the_measured_figures_are_those_of_the_artifact(made):
    report, suite = content(made), toy.build()
    merged = load(made / "out.pt").merged
    risks = []
    for row, task in zip(report["tasks"], suite.tasks, strict=True):
        assert task.test.labels is not None
        scores = task.forward(merged, task.test.inputs)
        assert row["accuracy"]["merged"] == pytest.approx(float((scores.argmax(1) == task.test.labels).double().mean()))
        risks.append(float(torch.nn.functional.cross_entropy(scores, task.test.labels)))
        assert row["cross_entropy"]["merged"] == pytest.approx(risks[-1])
    assert report["measured"]["risk"] == pytest.approx(sum(risks) / 3)


def test_a_report_is_reproducible():
    suite = toy.build()
    artifact, settings = make(suite), Settings(held_out=12, kernel=6, train=12, draws=4, points=3)
    first, second = (serialise.to_json(build(suite, artifact, settings)) for _ in range(2))
    del first["seconds"], second["seconds"]
    assert first == second


def test_the_linear_world_has_no_transfer_error():
    """With a linear activation and a frozen second layer f = f^lin on the path: the readings' risks and gaps agree."""
    suite = toy.build(overlap=0.5, activation="linear")
    report = build(suite, make(suite), Settings(held_out=24, kernel=12, train=30, draws=8, points=3))
    for point in report.sweep:
        assert point.transfer.value == pytest.approx(0, abs=1e-9)
        assert point.residual == pytest.approx(0, abs=1e-9)
        assert point.risk.value == pytest.approx(point.linear_risk.value)
        assert point.terms["assumed-linear"]["gap"] == pytest.approx(point.terms["linearised"]["gap"])
    assert report.ntk_radius is None
    own = [[s.own_risk.value for s in report.anchors[r].statistics] for r in ("assumed-linear", "linearised")]
    assert own[0] == pytest.approx(own[1])


def test_ntk_radius_interpolates_the_first_crossing():
    assert ntk_radius([0, 1, 2], [0, 0.05, 0.15]) == pytest.approx(1.5)
    assert ntk_radius([0, 1, 2, 3], [0, 0.2, 0.05, 0.3]) == pytest.approx(0.5)
    assert ntk_radius([0, 1], [0, 0.09]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a", "b", "c"]}, "artifact's tasks"),
        ({"sources": {"toy": "seed 1"}}, "artifact's sources"),
        ({"merged": {"first.weight": torch.zeros(2)}}, "artifact's weights"),
    ],
)
def test_a_foreign_artifact_is_refused(change, message):
    suite = toy.build()
    with pytest.raises(InputError, match=message):
        check_match(suite, dataclasses.replace(make(suite, steps=1), **change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merged", "none.pt"], "artifact none.pt: expected a file"),
        (["--merged", "foreign.pt"], "expected schema"),
        (["--merged", "nameless.pt"], "the name of a suite"),
        (["--merged", "other.pt"], "suite: expected"),
        (["--merged", "good.pt", "--out", "no/such/folder"], "report folder"),
        (["--merged", "good.pt", "--out", "good.pt"], "report folder"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = make(toy.build(), steps=1)
    save(good, "good.pt")
    save(dataclasses.replace(good, suite=""), "nameless.pt")
    save(dataclasses.replace(good, suite="elsewhere"), "other.pt")
    torch.save({"a": 1}, "foreign.pt")
    before = sorted(os.listdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("change", [{"kernel": 500}, {"delta": 0.0}, {"held_out": 1}, {"weight_draws": 99}])
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError):
        Settings(**change)


def test_the_console_script_dispatches(capsys, tmp_path):
    assert cli.main(["--help"]) == 0
    assert "mergebound COMMAND" in capsys.readouterr().out
    assert cli.main(["bake"]) == 2
    assert "expected merge or report" in capsys.readouterr().err
    assert cli.main(["report", "--merged", str(tmp_path / "none.pt")]) == 2
