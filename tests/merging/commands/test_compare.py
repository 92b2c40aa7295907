"""The commands ``list`` and ``compare``: what they print, write, keep and refuse."""

import csv
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from bounds.types import InputError
from merging import METHODS, merge, records
from merging.artifact import load
from merging.commands import compare, measure
from merging.commands.compare import Command, parse
from merging.commands.listing import settings_text
from merging.commands.measure import Spec
from merging.commands.merge import main
from merging.commands.packed import unpack
from merging.methods import POST_PROCESSINGS
from merging.params import norm, subtract
from merging.suites import published, toy
from merging.task import mean_accuracy, score_task

WANTED = ("average", "task_arithmetic:scale=0.7", "samerging")


@pytest.fixture
def runs(monkeypatch):
    """Measure in this process, and note what is measured."""
    measured = []

    def here(spec, suite_name, threads, scores):
        measured.append(spec.label)
        return measure.measure(spec, suite_name, threads, scores=scores)

    monkeypatch.setattr(compare, "measure_apart", here)
    return measured


def command(out, *methods, **options):
    return Command(suite="toy", methods=methods, out=out, **options)


def test_a_second_run_only_fills_what_is_missing(runs, tmp_path):
    out = tmp_path / "deep" / "folder"
    rows = compare.compare(command(out, *WANTED[:2])).rows
    assert runs == ["pretrained", "experts", *WANTED[:2]]
    (out / "results" / f"average-{Spec('average').key(toy.build())}.json").write_text("{", encoding="utf-8")
    runs.clear()
    same = compare.compare(command(out, "task_arithmetic:scale=.7")).rows
    assert runs == []
    assert "task_arithmetic:scale=0.7" in [row.label for row in same]
    again = compare.compare(command(out, *WANTED[:2], "task_arithmetic:scale=0.8", "average")).rows
    assert runs == ["average", "task_arithmetic:scale=0.8"]
    found = {row.label: (row.accuracy, row.sampled, row.kl, row.passes, row.distance) for row in again}
    for row in rows:
        assert found[row.label] == (row.accuracy, row.sampled, row.kl, row.passes, row.distance)


DRAWS = "fisher:examples=8"


def test_more_seeds_use_the_results_of_fewer(runs, tmp_path):
    one = compare.compare(command(tmp_path, "average", DRAWS, "dare_linear:scale=0.3,seed=4")).rows
    assert runs == ["pretrained", "experts", "average", f"{DRAWS},seed=0", "dare_linear:scale=0.3,seed=4"]
    runs.clear()
    three = {row.label: row for row in compare.compare(command(tmp_path, "average", DRAWS, seeds=3)).rows}
    assert runs == [f"{DRAWS},seed=1", f"{DRAWS},seed=2"]
    (first,) = (row for row in one if row.label == DRAWS)
    assert first.seeds == (0,)
    assert list(three[DRAWS].by_seed[0]) == list(first.accuracy)
    assert three[DRAWS].seeds == (0, 1, 2)
    assert three["average"].seeds == three["experts"].seeds == ()
    suite = toy.build()
    merges = [merge("fisher", suite, examples=8, seed=seed).merged for seed in (0, 1, 2)]
    means = torch.tensor([mean_accuracy(suite.tasks, found, "test") for found in merges], dtype=torch.float64)
    mean = three[DRAWS].mean
    assert mean is not None
    assert mean.value == pytest.approx(float(means.mean()))
    assert mean.stderr == pytest.approx(float(means.std()) / 3**0.5)


def test_after_a_seed_that_cannot_run_the_others_are_left_out(runs, tmp_path):
    rows = compare.compare(command(tmp_path, "average", "samerging", seeds=3)).rows
    assert runs == ["pretrained", "experts", "average", "samerging:seed=0"]
    assert "calibration examples" in rows[-1].reason


def test_published_gains_stand_beside_a_suite_that_has_some(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(published.NUMBERS, "toy", {"pretrained": 40.0, "experts": 80.0, "average": 70.0})  # pyright: ignore
    arguments = ["compare", "--suite", "toy", "--methods", "average", "task_arithmetic:scale=0.7", "--published", "toy"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "published gain" in " ".join(capsys.readouterr().out.split())
    lines = csv.DictReader((tmp_path / "compare.csv").read_text(encoding="utf-8").splitlines())
    assert {line["method"]: line["published gain"] for line in lines} == {
        "experts": "1.00",
        "task_arithmetic:scale=0.7": "",
        "average": "0.75",
        "pretrained": "0.00",
    }


def test_what_follows_a_method_is_a_row_of_its_own_with_its_own_key(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(published.NUMBERS, "toy", {"pretrained": 40.0, "experts": 80.0, "average": 70.0})  # pyright: ignore
    texts = ("average", "average+svc", "average+svc:floor=1", "average+lines:rise=0.5")
    rows = {row.label: row for row in compare.compare(command(tmp_path, *texts, published="toy")).rows}
    assert set(rows) == {"pretrained", "experts", *texts[:2], "average+svc:floor=1.0", texts[3]}
    assert len({spec.key(toy.build()) for spec in parse(texts)}) == 6
    suite = toy.build()
    for text in texts[1:]:
        (row,) = (row for row in rows.values() if row.label == parse([text])[2].label)
        made = merge(text, suite).merged
        assert list(row.accuracy) == pytest.approx([mean_accuracy([task], made, "test") for task in suite.tasks])
        assert row.published_gain is None, "nobody published that"
    assert rows["average"].published_gain == pytest.approx(0.75)
    assert rows["average+svc:floor=1.0"].then == {"svc": {"floor": 1.0}}
    runs.clear()
    compare.compare(command(tmp_path, *texts))
    assert runs == []


def test_the_key_of_a_method_alone_is_that_of_earlier_versions():
    """What is kept in docs/results stays valid; every value of a setting that follows tells results apart."""
    suite = toy.build()
    content = ["average", {}, suite.identity]
    old = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    keys = [
        spec.key(suite) for spec in parse(["average", "average+svc", "average+svc:floor=None", "average+lines"])[2:]
    ]
    assert keys[0] == old
    assert keys[1] == keys[2], "the default, written out"
    assert len(set(keys)) == 3


def test_all_with_what_follows_is_every_row_with_it():
    found = [spec.label for spec in parse(["all+svc:floor=1+lines"])[2:]]
    assert found == [f"{name}+svc:floor=1.0+lines" for name in METHODS]
    with pytest.raises(InputError, match="post-processing: expected"):
        parse(["all+magic"])


def test_the_list_shows_what_may_follow(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in POST_PROCESSINGS:
        assert name in text
    assert "post-processings" in text


def test_the_command_merges_with_what_follows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--suite", "toy", "--method", "ties:density=0.5+svc:floor=1", "--scale", "0.4", "--out", "a.pt"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "ties+svc on toy" in shown
    assert "svc.floor=1.0" in shown
    made = load(tmp_path / "a.pt")
    assert made.settings == {"scale": 0.4, "density": 0.5}
    assert made.then == {"svc": {"floor": 1.0}}
    expected = merge("ties:density=0.5,scale=0.4+svc:floor=1", toy.build()).merged
    assert all(torch.equal(made.merged[name], value) for name, value in expected.items())
    assert main(["--suite", "toy", "--method", "ties+magic", "--out", "b.pt"]) == 2
    assert "post-processing: expected lines or svc; got 'magic'" in capsys.readouterr().err


def test_labels_that_say_the_same_are_one_row(runs, tmp_path):
    rows = compare.compare(command(tmp_path, "average", "task_arithmetic:scale=.7", "task_arithmetic:scale=0.7")).rows
    assert len(rows) == 4
    assert runs.count("task_arithmetic:scale=0.7") == 1


def test_which_test_examples_are_right_is_kept(runs, tmp_path):
    compare.compare(command(tmp_path, "average"))
    suite = toy.build()
    key = Spec("average").key(suite)
    found = compare.read_kept(tmp_path / "results" / f"average-{key}.json", key)
    merged = merge("average", suite).merged
    assert found is not None
    for task, text in zip(suite.tasks, found.correct, strict=True):
        right = score_task(task, merged, task.test.inputs, "test", "merged").argmax(dim=1) == task.test.labels
        assert torch.equal(unpack(text), right.double())


@pytest.mark.parametrize("correct", [[], ["48:AA=="]])
def test_a_kept_result_whose_examples_do_not_fit_is_measured_again(correct, runs, tmp_path):
    compare.compare(command(tmp_path, "average"))
    (path,) = (tmp_path / "results").glob("average-*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("digest")
    content["measurement"]["correct"] = correct
    path.write_text(records.to_json(content), encoding="utf-8")
    runs.clear()
    compare.compare(command(tmp_path, "average"))
    assert runs == ["average"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text, other: other,
        lambda text, other: text.replace('"average"', '"averaged"'),
        lambda text, other: '{"label": "average", "method": "average", "settings": {}, "accuracy": "x"}',
    ],
    ids=["of another method", "edited", "of an earlier version"],
)
def test_a_kept_result_that_is_not_what_was_measured_is_measured_again(runs, tmp_path, damage):
    wanted = command(tmp_path, *WANTED[:2])
    before = compare.compare(wanted).rows
    results = tmp_path / "results"
    one, other = (next(results.glob(f"{name}-*.json")) for name in ("average", "task_arithmetic"))
    one.write_text(damage(one.read_text(encoding="utf-8"), other.read_text(encoding="utf-8")), encoding="utf-8")
    runs.clear()
    again = compare.compare(wanted).rows
    assert runs == ["average"]
    assert [row.accuracy for row in again] == [row.accuracy for row in before]


def test_figures_are_those_of_the_merge_and_stand_in_every_file(runs, tmp_path, capsys):
    assert main(["compare", "--suite", "toy", "--methods", *WANTED, "--out", str(tmp_path)]) == 0
    printed, suite = capsys.readouterr(), toy.build()
    assert "merging toy: 5 steps …\n" in printed.err
    found = merge("task_arithmetic", suite.task_vectors, suite.tasks, scale=0.7)
    accuracy = 100 * mean_accuracy(suite.tasks, found.merged, "test")
    distance = norm(subtract(found.merged, suite.task_vectors.base))
    content = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    row = next(row for row in content["rows"] if row["label"] == WANTED[1])
    assert sum(row["accuracy"]) / 3 == pytest.approx(accuracy / 100)
    assert row["distance"] == pytest.approx(distance)
    assert row["settings"] == {"scale": 0.7}
    assert row["mean"] == {"value": pytest.approx(accuracy / 100), "stderr": None}
    assert content["schema"] == "mergebound.compare/2"
    lines = list(csv.DictReader((tmp_path / "compare.csv").read_text(encoding="utf-8").splitlines()))
    assert next(line for line in lines if line["method"] == WANTED[1])["mean"] == f"{accuracy:.1f}"
    assert float(next(line for line in lines if line["method"] == "experts")["KL"]) == 0
    markdown = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert f"| 1 | {WANTED[1]} |  | {accuracy:.1f} | " in markdown
    for text in (printed.out, markdown, lines[-1]["reason"]):  # samerging wants more examples than toy has
        assert "calibration examples" in text
    assert not list((tmp_path / "results").glob("samerging*")), "what did not run is tried again"
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert WANTED[1] in (tmp_path / "compare.svg").read_text(encoding="utf-8")
    means = [float(line["mean"]) for line in lines if line["mean"]]
    assert means == sorted(means, reverse=True)


def test_several_tables_share_the_results_of_a_folder(runs, tmp_path):
    both = compare.Command(suite="toy", methods=("average", "task_arithmetic:scale=0.7"), out=tmp_path, table="all")
    compare.compare(both)
    runs.clear()
    compare.compare(compare.Command(suite="toy", methods=("average",), out=tmp_path))
    assert runs == []
    rows = {
        name: json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["rows"] for name in ("all", "compare")
    }
    assert [len(rows["all"]), len(rows["compare"])] == [4, 3]
    assert {path.name for path in tmp_path.iterdir()} == {
        "results",
        *(f"{name}.{suffix}" for name in ("all", "compare") for suffix in ("json", "csv", "md", "svg", "png")),
    }


@pytest.mark.parametrize("name", ["", "../all", "a/b", ".hidden"])
def test_a_table_has_the_name_of_a_file(name, tmp_path):
    with pytest.raises(InputError, match="table: expected a plain file name"):
        compare.compare(compare.Command(suite="toy", methods=("average",), out=tmp_path, table=name))


def test_passes_are_counted_in_examples(monkeypatch):
    small = {"steps": 3, "examples": 8, "batch": 4}
    learned = {"none": 3 * 3 * 4, "coefficients": 2 * 3 * 3 * 4}  # passes x tasks x batch
    for perturbation, passes in learned.items():
        spec = Spec("samerging", {**small, "perturbation": perturbation})
        assert measure.measure(spec, "toy", 1).passes == passes
        with monkeypatch.context() as patch:
            patch.setattr(measure, "merge", _without_history)
            assert measure.measure(spec, "toy", 1).passes == passes
    assert measure.measure(Spec("fisher", {"examples": 8}), "toy", 1).passes == 3 * 8
    assert measure.measure(Spec("regmean", {"examples": 8}), "toy", 1).passes == 0


def _without_history(*arguments, **settings):
    return replace(merge(*arguments, **settings), history={})


def test_a_method_is_measured_in_a_process_of_its_own():
    ballast = torch.ones(2**27)  # 512 MiB here must not count there
    found = measure.measure_apart(Spec("average"), "toy", 1)
    assert ballast.numel() / 2**18 < measure.peak_memory()
    assert found.memory is not None
    assert found.memory < measure.peak_memory() - 256
    with pytest.raises(InputError, match="expected a process that ends"):
        measure.measure_apart(Spec("average"), _Killer(), 1)  # pyright: ignore[reportArgumentType]


class _Killer:
    """A suite name that ends the process that receives it."""

    def __reduce__(self):
        import os

        return os._exit, (1,)


class _Held:
    """A suite name that lets the process that receives it open a named pipe and wait for ever."""

    def __init__(self, pipe):
        self.pipe = pipe

    def __reduce__(self):
        return _hold, (self.pipe,)


def _hold(pipe):
    with open(pipe, "w") as told:
        told.write("working")
        told.flush()
        threading.Event().wait()


def test_no_process_outlives_the_command(tmp_path):
    """A worker in the middle of its work ends when its parent is killed: its end of the pipe is closed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "from merging.commands.measure import *; from tests.merging.commands.test_compare import _Held\n"
        f"measure_apart(Spec('average'), _Held({str(pipe)!r}), 1)"
    )
    handle, waiting = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), select.poll()
    waiting.register(handle, select.POLLIN | select.POLLHUP)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as command:
        assert waiting.poll(300_000), "the worker does not begin"
        assert os.read(handle, 7) == b"working"
        command.kill()
    assert waiting.poll(300_000), "the worker is still there"
    assert os.read(handle, 1) == b""
    os.close(handle)


def test_settings_stand_behind_the_method_and_in_the_key():
    specs = parse(["all", "task_arithmetic:scale=0.5", "samerging:objective=kl,steps=2", "average"])
    assert [spec.method for spec in specs] == ["pretrained", "experts", *METHODS, "task_arithmetic", "samerging"]
    assert specs[-1].given == {"objective": "kl", "steps": 2}
    suite = toy.build()
    keys = {spec.key(suite) for spec in specs}
    assert len(keys) == len(specs)
    assert Spec("samerging").key(suite) == Spec("samerging", {"objective": "kl"}).key(suite)
    assert Spec("fisher", {"seed": 0}).key(suite) == Spec("fisher").key(suite)
    assert Spec("average").key(suite) != Spec("average").key(replace(suite, sources={"toy": "seed 1"}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "magic"], "method: expected average or"),
        (["--methods", "average:scale=1"], "setting of average: expected NAME=VALUE of none"),
        (["--methods", "task_arithmetic:scale"], "setting of task_arithmetic"),
        (["--methods", "task_arithmetic:scale=nan"], "scale: expected a finite number"),
        (["--methods", "task_arithmetic:scale=much"], "scale: expected float | None; got 'much'"),
        (["--suite", "large"], "suite: expected mini8 or text8 or toy"),
        (["--threads", "0"], "threads: expected at least 1"),
        (["--seeds", "0"], "seeds: expected at least 1; got 0"),
        (["--suite", "toy", "--published", "toy"], "published gains of a suite: expected clip-ta8:ViT-B-32 or"),
        (["--suite", "toy", "--methods", "samerging"], "methods: expected one that runs on the suite"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, runs, tmp_path, capsys):
    assert main(["compare", *arguments, "--out", str(tmp_path / "out")]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if not line.endswith("…"))  # how far it is
    assert error.startswith(f"error: {message}")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("", encoding="utf-8")
    assert main(["compare", "--suite", "toy", "--methods", "average", "--out", str(tmp_path / "out")]) == 2
    assert "expected a folder that can be made and written" in capsys.readouterr().err


def test_the_list_names_every_method_paper_and_setting(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name, row in METHODS.items():
        assert name in printed
        assert row.paper.split()[-1] in printed
    assert "rho=0.07" in printed
    assert "perturbation=coefficients\n" in settings_text(METHODS["samerging"].settings)
