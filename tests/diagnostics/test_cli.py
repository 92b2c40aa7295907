"""Every command refuses, before it works, outputs that are one file, an input or no regular file; options act."""

import contextlib
import importlib.metadata
import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from diagnostics import ablation, bound_report, cli, solver_curve, sweep
from diagnostics.benchmark import closed_form
from diagnostics.benchmark import merge as benchmark_merge
from diagnostics.cli import COMMANDS
from diagnostics.figures import figure_files, style
from diagnostics.figures.svg import Drawing
from diagnostics.page import draw, render
from diagnostics.report import build
from diagnostics.settings import Settings
from diagnostics.study import coverage
from diagnostics.subject import Subject
from diagnostics.text import print_report
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import files, merge, suites
from merging.artifact import save
from merging.commands import run
from merging.commands.merge import main as merging
from merging.plain import to_plain
from merging.suites import toy


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an artifact, a pipe and a folder of a report whose files are pipes; nothing may load a suite."""
    suite = toy.build()
    made = merge("average", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources)
    for name in ("out.pt", "report.json", "sweep.csv"):
        save(made, tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    for name in ("report.json", "sweep.csv", "compare.md", "ablation.md", "solver_curve.png"):
        (tmp_path / name.split(".")[0]).mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name.split(".")[0] / name)
    monkeypatch.chdir(tmp_path)

    def worked(*arguments):
        raise AssertionError("work has begun")

    monkeypatch.setattr(suites, "load", worked)
    monkeypatch.setattr(coverage, "EXPERIMENTS", (worked,))
    return tmp_path


CASES = (
    (merging, "--suite toy --out x --mapped x", "another file than --out"),
    (merging, "--suite toy --out x --mapped ./x.checkpoint", "another file than --mapped"),
    (merging, "--suite toy --out pipe", "got a pipe"),
    (merging, "--suite toy --method average --mapped pipe", "got a pipe"),
    (merging, "compare --suite toy --out compare", "got a pipe"),
    (bound_report.main, "--merged out.pt --out new --json out.pt", "another file than --merged"),
    (bound_report.main, "--merged out.pt --out new --json pipe", "got a pipe"),
    (bound_report.main, "--merged out.pt --out new --json new/report.json", "new"),
    (bound_report.main, "--merged out.pt --out . --json ./report.html", "another file than the report's report.html"),
    (bound_report.main, "--merged report.json --out .", "another file than --merged report.json"),
    (bound_report.main, "--merged out.pt --out . --json figures/x.json", "a place outside figures"),
    (bound_report.main, "--merged out.pt --out report", "got a pipe"),
    (bound_report.main, "--merged out.pt --out pipe", "report folder pipe"),
    (sweep.main, "--merged sweep.csv --out .", "another file than --merged sweep.csv"),
    (sweep.main, "--merged out.pt --out sweep", "got a pipe"),
    (sweep.main, "--merged out.pt --points 3 --s 0 1", "--s or --points"),
    (ablation.main, "--suite toy --out ablation", "got a pipe"),
    (ablation.main, "--suite toy --out pipe", "output pipe"),
    (solver_curve.main, "--suite toy --out solver_curve", "got a pipe"),
    (coverage.main, "coverage --out pipe", "got a pipe"),
    (lambda _: run(lambda: benchmark_merge.measure(json_out="pipe")), "", "got a pipe"),
    (lambda _: run(lambda: benchmark_merge.measure(folder=Path("x"))), "", "--place mapped"),
    (lambda _: run(lambda: closed_form.measure(json_out="pipe")), "", "got a pipe"),
)


@pytest.mark.parametrize(("command", "arguments", "message"), CASES)
def test_output_never_replaces_another_output_an_input_or_what_is_no_regular_file(
    command, arguments, message, folder, capsys
):
    def seen():
        return sorted((str(p.relative_to(folder)), os.lstat(p).st_ino) for p in folder.rglob("*"))

    before = seen()
    assert command(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert seen() == before


def shown(command, *arguments):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert not ended(command, *arguments, "--help")
    return text.getvalue()


@pytest.mark.parametrize(
    ("command", "arguments", "present", "absent"),
    [
        (merging, (), "--device --checkpoint-every --resume --preset --rho", "--penalty --every --average-decay"),
        (merging, ("--perturbation", "none"), "--device --average", "--penalty --every --average-decay --rho"),
        (merging, ("--perturbation=look", "--average", "ema"), "--every --average-decay --rho", "--penalty"),
        (merging, ("--perturbation", "ggn-trace"), "--penalty --rho", "--every --average-decay"),
        (merging, ("--method", "adamerging"), "--preset --steps", "--penalty --every --average-decay --rho"),
        (
            merging,
            ("--method", "ties"),
            "--density --storage",
            "--device --autocast --checkpoint-every --resume --preset",
        ),
        (
            sweep.main,
            (),
            "--points --s --gram --beta",
            "--control-points --control-experts --hessian --resamples --splits",
        ),
        (
            bound_report.main,
            (),
            "--points --control-points --hessian --resamples --beta --splits",
            "--random-directions",
        ),
    ],
)
def test_help_shows_the_options_that_act_and_no_others(command, arguments, present, absent):
    text = shown(command, *arguments)
    options = re.findall(r"--[\w-]+", text)
    assert not [option for option in present.split() if option not in options]
    assert not [option for option in absent.split() if f"│ {option}" in text]
    for option in absent.split():
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            status = ended(command, *arguments, option, "3")
        assert status == 2


def ended(command, *arguments):
    try:
        return command(list(arguments))
    except SystemExit as end:
        return end.code


NAMES = [
    *("merge", "compare", "list", "suite", "edit", "convert", "export", "report"),
    *("reproduce", "sweep", "ablation", "study", "benchmark", "selfcheck"),
]


def test_every_command_has_help():
    assert list(COMMANDS) == NAMES
    for name, (command, _) in COMMANDS.items():
        text = shown(command)
        assert "--help" in text, name
        assert f"usage: mergebound {name}" in text


def test_alone_it_lists_every_command_in_a_line_of_a_narrow_terminal(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line[:2] == "  " and line[2] != " "] == NAMES
    assert max(map(len, lines)) <= 100


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mergebound {importlib.metadata.version('mergebound')}\n"


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ("selfchek", "selfcheck"),
        ("comapre", "compare"),
        ("suite chekc", "check"),
        ("report shwo x", "show"),
        ("benchmark bonds", "bounds"),
        ("merge --method SAMergin", "samerging"),
        ("merge --method task-aritmetic", "task_arithmetic"),
        ("merge --preset papr", "paper"),
        ("merge --perturbation lok", "look"),
        ("merge --suite tooy", "toy"),
        ("merge --suite clip-ta9", "clip-ta8"),
        ("merge --mehtod ties", "--method"),
        ("compare --suite toy --methods tiess", "ties"),
        ("compare --suite toy --methods ties:densty=0.1", "density"),
        ("report --merged out.pt --sections acuracy", "accuracy"),
        ("sweep --merged out.pt --expert task0", "--experts"),
        ("suite init --kind hf_txt", "hf_text"),
        ("reproduce tal14", "clip-tall14"),
    ],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one_in_one_line(
    arguments, near, tmp_path, monkeypatch, capsys
):
    suite = toy.build()
    monkeypatch.chdir(tmp_path)
    save(merge("average", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources), tmp_path / "out.pt")
    assert ended(cli.main, *arguments.split()) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith("error: ")
    assert found.err.endswith(f"; did you mean {near}?\n")


@pytest.mark.parametrize(
    "arguments",
    [
        "bake",
        "merge --nope",
        "merge --steps many",
        "merge --steps 0",
        "merge --suite nowhere.yaml",
        "merge --perturbation none --rho 0.1",
        "compare --seeds 0",
        "list all",
        "suite",
        "convert",
        "export none.pt --to x",
        "report",
        "report show none.json",
        "report export none.json --csv",
        "report --merged none.pt --held-out 1",
        "reproduce",
        "sweep",
        "ablation --seeds x",
        "study",
        "study coverage --draws x",
        "benchmark",
        "benchmark bounds --images x",
        "selfcheck now",
    ],
)
def test_bad_input_of_every_command_is_one_line_and_status_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ended(cli.main, *arguments.split()) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert re.fullmatch(r"error: .*: expected .*; got .*; .*\n", found.err)
    assert not list(tmp_path.iterdir())


ODD = [
    "[/nope]",
    "<script>alert(1)</script>",
    "a/b",
    "../../x",
    "naïve 任务",
    "x" * 300,
    r"$\nope$",
    "a\nb|c",
    "-->",
]


@pytest.mark.parametrize("name", ODD)
def test_names_of_tasks_may_be_anything_on_terminal_page_and_figures(name, tmp_path):
    suite = toy.build()
    names = (name, *suite.task_vectors.names[1:])
    renamed = type(suite.task_vectors).from_stacked(suite.task_vectors.base, suite.task_vectors.stacked, names)
    tasks = [type(t)(**{**vars(t), "name": n}) for t, n in zip(suite.tasks, names, strict=True)]
    odd = type(suite)(**{**vars(suite), "task_vectors": renamed, "tasks": tasks})
    subject = Subject(name, name, merge("average", renamed, tasks, suite="toy", sources=suite.sources))
    settings = Settings(held_out=8, kernel=4, train=8, draws=2, weight_draws=1, points=3, resamples=4)
    sections = ("accuracy", "heterogeneity", "distillation", "certificates")
    report = build(Workspace([subject], lambda: odd, settings, Cache(tmp_path / "cache")), sections)
    out = io.StringIO()
    print_report(report, Console(file=out, width=400))
    assert (name if name.isprintable() else name[0].encode("ascii", "backslashreplace").decode()) in out.getvalue()
    drawings = draw(report, Cache(None))
    figure_files.write_figures(tmp_path / "figures", "report", drawings)
    page = files.encoded(render(report, drawings)).decode()
    assert "<script" not in page
    assert to_plain(report)["tasks"][0] == name
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "figures"}


@pytest.mark.parametrize("name", ["../../x", "..", "/x", "a/../x", "x" * 300])
def test_a_manifest_never_removes_anything_outside_its_folder(name, tmp_path):
    folder = tmp_path / "deep" / "figures"
    folder.mkdir(parents=True)
    (tmp_path / "x").write_bytes(b"mine")
    manifest = figure_files.Manifest(figure_files.SCHEMA, {"report": {name: figure_files._digest(b"mine")}})
    text = figure_files.records.to_json(to_plain(manifest))
    (folder / figure_files.MANIFEST).write_text(text, encoding="utf-8")
    assert run(lambda: figure_files.write_figures(folder, "report", {})) == 2
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_figures_behind_links_are_not_removed(tmp_path):
    picture = style.as_images(lambda: style.new_figure(1.0), "one")
    assert isinstance(picture, Drawing)
    figure_files.write_figures(tmp_path / "f", "report", {"one": picture})
    (tmp_path / "f" / "one.svg").rename(tmp_path / "mine.svg")
    (tmp_path / "f" / "one.svg").symlink_to(tmp_path / "mine.svg")
    figure_files.write_figures(tmp_path / "f", "report", {})
    assert (tmp_path / "f" / "one.svg").is_symlink()
    assert not (tmp_path / "f" / "one.png").exists()
