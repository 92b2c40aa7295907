import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from bounds.types import InputError
from diagnostics import bound_report, cli, schema
from diagnostics.bound_report import main
from diagnostics.folder import read_report
from diagnostics.report import build
from diagnostics.sections.table import SECTIONS
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.terms import linear as linear_world
from diagnostics.terms.path import ntk_radius
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge
from merging.artifact import load, save
from merging.matching import check_match
from merging.plain import to_plain
from merging.processes import Processes
from merging.records import seal
from merging.suites import toy
from tests.joined import together

QUICK = ["--workers", "1", "--kernel", "12", "--held-out", "24", "--train", "30", "--draws", "8", "--points", "5"]
SMALL = Settings(held_out=24, kernel=12, train=30, draws=8, points=3)


def make(suite, method="samerging", **settings):
    if method == "samerging":
        settings = {"steps": 30, "examples": 16, **settings}
    return merge(method, suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, **settings)


def workspace(suite, *artifacts, settings=SMALL, cache=None, **more):
    subjects = [Subject(a.method, f"{a.method}.pt", a) for a in artifacts]
    return Workspace(subjects, lambda: suite, settings, Cache(cache), **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    save(make(toy.build()), folder / "out.pt")
    assert main(["--merged", str(folder / "out.pt"), "--out", str(folder / "report"), *QUICK]) == 0
    return folder


def content(folder):
    return json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))


def test_the_json_follows_the_published_schema_and_can_be_read_back(made):
    published = schema.FILE.read_text(encoding="utf-8")
    assert published == schema.text()  # python -m diagnostics.schema rewrites it
    jsonschema.validate(content(made), json.loads(published))
    assert seal(to_plain(read_report(made / "report" / "report.json"))) == content(made)


@pytest.mark.parametrize("change", [("0.", "1."), ("toy", "tov"), ('"digest"', '"digests"')])
def test_a_report_edited_by_hand_is_refused(made, change):
    path = made / "edited.json"
    path.write_text((made / "report" / "report.json").read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    with pytest.raises(InputError, match="expected the content that was written"):
        read_report(path)


def test_terms_sum_to_the_value_and_corrected_is_linearised_plus_transfer(made):
    section = content(made)["merges"][0]["bound"]
    bounds = {b["reading"]: b for b in section["readings"]}
    for bound in bounds.values():
        assert sum(t["estimate"]["value"] for t in bound["terms"]) == pytest.approx(bound["value"])
        assert bound["vacuous"] == (bound["value"] >= section["trivial_risk"])
        assert sum(abs(t["share"]) for t in bound["terms"]) == pytest.approx(1)
    transfer = bounds["corrected"]["terms"][-1]
    assert transfer["name"] == "transfer error"
    assert bounds["corrected"]["value"] == pytest.approx(bounds["linearised"]["value"] + transfer["estimate"]["value"])
    assert bounds["linearised"]["status"] == "estimated"
    assert bounds["assumed-linear"]["status"] == "assumed"


def test_the_sweep_starts_at_the_base_passes_the_merge_and_bounds_the_risk(made):
    merge_report = content(made)["merges"][0]
    paths = merge_report["sweep"]["paths"]
    points = paths[0]["points"]
    assert [p["kind"] for p in paths] == ["merge", "expert", "expert", "expert", "random"]
    assert [p["s"] for p in points] == [0, 0.5, 1, 1.5, 2]
    for path in paths:  # at s = 0 all paths are at θ_0
        assert path["points"][0]["risk"] == pytest.approx(points[0]["risk"])
        assert path["points"][0]["transfer"]["value"] == pytest.approx(0, abs=1e-9)
        assert path["points"][0]["residual"] == 0
        for p in path["points"]:
            assert p["bounds"]["corrected"] > p["risk"]["value"]
            assert p["distance"] == pytest.approx(p["s"] * path["norm"])
            for reading, value in p["bounds"].items():
                assert p["gaps"][reading] == pytest.approx(value - p["risk"]["value"])
                assert sum(p["terms"][reading].values()) == pytest.approx(value)
    at_merge = {b["reading"]: b["value"] for b in merge_report["bound"]["readings"]}
    del at_merge["assumed-linear"]  # along the path it is for mergebound sweep
    assert points[2]["bounds"] == pytest.approx(at_merge)
    assert paths[0]["norm"] == pytest.approx(paths[-1]["norm"])
    assert paths[0]["norm"] == pytest.approx(merge_report["bound"]["distance"])


def test_the_measured_figures_are_those_of_the_artifact(made):
    section, suite = content(made)["merges"][0]["accuracy"], toy.build()
    merged = load(made / "out.pt").merged
    risks, errors = [], []
    for row, task in zip(section["tasks"], suite.tasks, strict=True):
        assert task.test.labels is not None
        scores = task.forward(merged, task.test.inputs)
        errors.append(float((scores.argmax(1) != task.test.labels).double().mean()))
        assert row["accuracy"]["merged"] == pytest.approx(1 - errors[-1])
        risks.append(float(torch.nn.functional.cross_entropy(scores, task.test.labels)))
        assert row["cross_entropy"]["merged"] == pytest.approx(risks[-1])
    assert section["risk"]["value"] == pytest.approx(sum(risks) / 3)
    assert section["error"]["value"] == pytest.approx(sum(errors) / 3)
    assert section["trivial_risk"] == pytest.approx((2 * math.log(3) + math.log(2)) / 3)


def test_the_verdict_says_what_the_numbers_say(made):
    report = content(made)
    did, good, theory, where = report["verdict"]
    merged = report["merges"][0]
    words = [task["word"] for task in merged["diagnosis"]["tasks"]]
    assert did.startswith(f"Of 3 tasks {words.count('served')} ")
    assert f"{100 * (1 - merged['accuracy']['error']['value']):.1f} %" in good
    corrected = merged["bound"]["readings"][2]
    largest = max(corrected["terms"], key=lambda t: t["estimate"]["value"])
    assert f"{largest['name']} dominates" in theory
    assert ("not vacuous" in theory) != corrected["vacuous"]
    path = merged["sweep"]["paths"][0]
    assert ("outside" in where) == (path["ntk_radius"] is not None and path["norm"] > path["ntk_radius"])


def test_alpha_weighs_the_tasks():
    suite = toy.build()
    alpha = (0.6, 0.3, 0.1)
    report = build(workspace(suite, make(suite, "average"), alpha=alpha), ["accuracy", "heterogeneity"])
    section = report.merges[0].accuracy
    assert section is not None
    expected = sum(a * row.cross_entropy["merged"] for a, row in zip(alpha, section.tasks, strict=True))
    assert section.risk.value == pytest.approx(expected)
    assert report.merges[0].bound is None
    table = report.merges[0].heterogeneity
    assert table is not None
    risk = torch.tensor(table.readings["linearised"].risk)
    h_q = torch.tensor(alpha) @ risk @ torch.full((3,), 1 / 3) - risk.diagonal().mean()
    assert table.readings["linearised"].heterogeneity.value == pytest.approx(float(h_q), abs=1e-6)


@pytest.mark.parametrize("alpha", [(0.5, 0.5), (0.5, 0.6, -0.1), (1.0, 1.0, 1.0)])
def test_weights_off_the_simplex_are_refused(alpha):
    suite = toy.build()
    with pytest.raises(InputError, match="alpha"):
        workspace(suite, make(suite, "average"), alpha=alpha)


def without_times(report):
    plain = to_plain(report)
    for name in ("seconds", "made", "machine"):
        del plain["provenance"][name]
    return plain


def test_a_report_is_reproducible_and_does_not_depend_on_the_number_of_processes():
    suite = toy.build()
    artifact = make(suite)
    reports = [without_times(build(workspace(suite, artifact, workers=w))) for w in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0] == reports[2]


def test_what_is_cached_needs_no_suite_of_files_and_changes_nothing(tmp_path):
    suite = toy.build()
    artifact = make(suite)
    first = build(workspace(suite, artifact, cache=tmp_path / "cache", made_of_files=True))

    def gone():
        raise AssertionError("the suite was loaded")

    subjects = [Subject(artifact.method, "samerging.pt", artifact)]
    again = build(Workspace(subjects, gone, SMALL, Cache(tmp_path / "cache"), made_of_files=True))
    assert without_times(again) == without_times(first)
    assert again.provenance.seconds == {}
    other = dataclasses.replace(SMALL, seed=1)
    with pytest.raises(AssertionError, match="was loaded"):
        build(Workspace(subjects, gone, other, Cache(tmp_path / "cache"), made_of_files=True))


def test_an_interrupted_report_goes_on_where_it_stopped(tmp_path, monkeypatch):
    suite = toy.build()
    artifact = make(suite)
    space = workspace(suite, artifact, cache=tmp_path / "cache")
    done = []

    def interrupted(task, *arguments, original=linear_world.on_training, **more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.name)
        return original(task, *arguments, **more)

    monkeypatch.setattr(linear_world, "on_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(space)
    assert done == ["task0", "task1"]
    again = []
    monkeypatch.undo()
    original = linear_world.on_training
    monkeypatch.setattr(linear_world, "on_training", lambda t, *a, **k: again.append(t.name) or original(t, *a, **k))
    report = build(workspace(suite, artifact, cache=tmp_path / "cache"))
    assert again == ["task2"]
    assert without_times(report) == without_times(build(workspace(suite, artifact)))


BLOCKED = """
import sys, threading
from diagnostics.terms.path import Path
from diagnostics.bound_report import main

def wait(*arguments, **more):
    open("working", "w").close()  # a named pipe: opens when the test reads it
    threading.Event().wait()

Path.point = wait
sys.exit(main(["--merged", "a.pt", "--workers", "2"]))
"""


def test_an_interrupt_is_one_line_and_status_130_and_leaves_only_the_cache(tmp_path):
    """The report is interrupted in the middle of its work: the workers wait there for ever."""
    save(make(toy.build(), "average"), tmp_path / "a.pt")
    os.mkfifo(tmp_path / "working")
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let background jobs ignore it
    ) as process:  # fmt: skip
        with open(tmp_path / "working"):  # opens when a worker has come to the sweep
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.endswith("interrupted; nothing half-written\n")
    assert "Traceback" not in error
    cache = tmp_path / "report" / "cache"
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["cache"]
    assert list(cache.glob("*.pt"))
    assert not [p.name for p in cache.iterdir() if p.name.startswith(".")]


def test_a_spent_budget_leaves_sections_out_and_says_so(tmp_path):
    suite = toy.build()
    artifact = make(suite, "average")
    short = build(workspace(suite, artifact, cache=tmp_path / "c"), budget_seconds=0.0)
    assert all(getattr(short.merges[0], name) is None for name in SECTIONS)
    assert "budget" in short.provenance.missing["average: bound"]
    assert short.verdict == ()
    whole = build(workspace(suite, artifact, cache=tmp_path / "c"))
    assert list(whole.provenance.missing) == ["average: certificates: (15) with unlabelled inputs"]  # drawn by class
    cached = build(workspace(suite, artifact, cache=tmp_path / "c"), budget_seconds=0.0)
    assert without_times(cached) == without_times(whole)


def test_the_linear_world_has_no_transfer_error():
    """With a linear activation and a frozen second layer f = f^lin on the path: the readings' risks and gaps agree."""
    suite = toy.build(overlap=0.5, activation="linear")
    report = build(workspace(suite, make(suite)), ["sweep", "bound"])
    merged = report.merges[0]
    assert merged.sweep
    assert merged.bound
    for path in merged.sweep.paths:  # the random one too: it moves the tensors that the merge moves
        for point in path.points:
            assert point.transfer.value == pytest.approx(0, abs=1e-9)
            assert point.residual == pytest.approx(0, abs=1e-9)
            assert point.risk.value == pytest.approx(point.linear_risk.value)
        assert path.ntk_radius is None
    terms = [{t.name: t.estimate.value for t in r.terms} for r in merged.bound.readings[:2]]
    assert terms[0]["consensus gap"] == pytest.approx(terms[1]["consensus gap"])
    own = [[e.own_risk.value for e in merged.bound.experts[r]] for r in ("assumed-linear", "linearised")]
    assert own[0] == pytest.approx(own[1])
    assert "inside the NTK radius" in report.verdict[1]


def test_ntk_radius_interpolates_the_first_crossing():
    assert ntk_radius([0, 1, 2], [0, 0.05, 0.15]) == pytest.approx(1.5)
    assert ntk_radius([0, 1, 2, 3], [0, 0.2, 0.05, 0.3]) == pytest.approx(0.5)
    assert ntk_radius([0, 1], [0, 0.09]) is None
    assert ntk_radius([0, 1], [0, 0.09], tolerance=0.045) == pytest.approx(0.5)
    assert ntk_radius([0.5, 1], [0.4, 0.8]) == pytest.approx(0.125)  # a grid that begins beyond the radius


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
        (["--merged", "nameless.pt"], "one of a suite that can be found again"),
        (["--merged", "other.pt"], "one of a suite that can be found again"),
        (["--merged", "good.pt", "--out", "no/such/folder"], "report folder"),
        (["--merged", "good.pt", "--out", "good.pt"], "report folder"),
        (["--merged", "good.pt", "good.pt"], "one file twice"),
        (["--merged", "good.pt", "elsewhere.pt"], "the suite and sources of good.pt"),
        (["--merged", "good.pt", "--sections", "all"], "section: expected diagnosis"),
        (["--merged", "good.pt", "--alpha", "1", "2"], "alpha: expected 3 weights"),
        (["--merged", "good.pt", "--device", "abacus"], "device: expected"),
        (["--merged", "good.pt", "--workers", "0"], "workers: expected"),
        (["--merged", "good.pt", "--delta", "2"], "delta: expected a probability"),
        (["--merged", "good.pt", "--json", "no/such.json"], "--json no/such.json: expected"),
        (["show", "none.json"], "report none.json: expected a file; got nothing there"),
        (["show", "foreign.pt"], "report foreign.pt: expected JSON of schema"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = make(toy.build(), steps=1)
    save(good, "good.pt")
    save(dataclasses.replace(good, suite=""), "nameless.pt")
    save(dataclasses.replace(good, suite="elsewhere"), "other.pt")
    save(dataclasses.replace(good, sources={"toy": "seed 1"}), "elsewhere.pt")
    torch.save({"a": 1}, "foreign.pt")
    before = sorted(os.listdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "change",
    [{"kernel": 500}, {"delta": 0.0}, {"held_out": 1}, {"weight_draws": 99}, {"tolerance": 0.0}, {"rho": math.inf}],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError):
        Settings(**change)


def test_json_to_standard_output_is_json_alone(made, capsys):
    arguments = ["--merged", str(made / "out.pt"), "--out", str(made / "report"), *QUICK]
    assert main([*arguments, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema"] == "mergebound.report/8"
    assert all(re.fullmatch(r".*( …| done in [0-9.]+ s)", line) for line in captured.err.splitlines()), captured.err
    assert main([*arguments, "--json", str(made / "copy.json")]) == 0
    copy = json.loads((made / "copy.json").read_text(encoding="utf-8"))
    assert copy["verdict"] == content(made)["verdict"]


def test_show_prints_what_the_report_printed(made, capsys):
    shutil.copy(made / "report" / "report.json", made / "shown.json")
    assert cli.main(["report", "show", str(made / "shown.json")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert " ".join(content(made)["verdict"][0].split()) in out
    assert "ladder (8)" in out
    shown = subprocess.run(
        [sys.executable, "-m", "diagnostics.cli", "report", "show", "none.json"], capture_output=True, text=True,
        cwd=made, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("error: report none.json: expected a file; got nothing there")


def test_labels_are_methods_or_file_names(tmp_path):
    suite = toy.build()
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    save(make(suite, "average"), paths[0])
    save(make(suite, "task_arithmetic"), paths[1])
    assert [s.label for s in bound_report.read_subjects(paths)] == ["average", "task_arithmetic"]
    save(make(suite, "average"), paths[1])
    assert [s.label for s in bound_report.read_subjects(paths)] == ["a", "b"]


def test_the_console_script_dispatches(capsys, tmp_path):
    assert cli.main(["--help"]) == 0
    assert "usage: mergebound COMMAND" in capsys.readouterr().out
    assert cli.main(["bake"]) == 2
    assert "expected merge or compare or list or suite" in capsys.readouterr().err
    assert cli.main(["report", "--merged", str(tmp_path / "none.pt")]) == 2
    assert cli.main(["sweep", "--merged", str(tmp_path / "none.pt")]) == 2


def test_two_processes_share_the_work_and_report_the_same(tmp_path):
    suite = toy.build()
    artifact = make(suite)

    def numbers(joined=None):
        done = []
        cache = Cache(tmp_path / "joined" if joined else None, joined or Processes())
        space = Workspace([Subject(artifact.method, "-", artifact)], lambda: suite, SMALL, cache)
        draw = space._draw
        space._draw = lambda index, sigmas: done.append(index) or draw(index, sigmas)
        plain = to_plain(build(space, ("accuracy", "bound")))
        return {name: value for name, value in plain.items() if name != "provenance"}, done

    expected, everything = numbers()
    first, second = together(numbers)
    assert first[0] == second[0] == expected
    assert first[1]
    assert second[1]
    assert sorted(first[1] + second[1]) == sorted(everything) == [0, 1, 2]


def test_without_labels_the_command_reports_what_is_known_and_keeps_it_apart(tmp_path, capsys):
    """Also where the same folder holds what was measured with labels."""
    save(make(toy.build(), "average"), tmp_path / "out.pt")
    arguments = ["--merged", str(tmp_path / "out.pt"), "--out", str(tmp_path / "report"), *QUICK]
    names = ["accuracy", "distillation", "label_free"]
    assert main([*arguments, "--sections", *names]) == 0
    capsys.readouterr()
    assert main([*arguments, "--no-labels", "--sections", *names]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "what is known without labels" in out
    assert "accuracy: expected the labels of split test of every task" in out
    found = read_report(tmp_path / "report" / "report.json")
    assert found.settings.labels is False
    assert found.merges[0].accuracy is None
    assert found.merges[0].label_free.total.test_error is None
    assert "not certified" in found.verdict[0]
