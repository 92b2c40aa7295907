import json
import math
import os
import stat
from dataclasses import fields, replace

import pytest
import torch

from bounds.types import InputError
from merging import merge, records
from merging.artifact import load, save
from merging.commands.merge import main
from merging.suites import toy


@pytest.fixture(scope="module")
def artifact():
    suite = toy.build()
    return merge("samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=2, examples=4)


def test_artifacts_from_before_post_processings_are_read(tmp_path, artifact):
    content = {f.name: getattr(artifact, f.name) for f in fields(artifact) if f.name != "then"}
    content |= {"names": list(artifact.names), "blocks": {b: list(n) for b, n in artifact.blocks.items()}}
    records.save(tmp_path / "old.pt", content)
    found = load(tmp_path / "old.pt")
    assert found.then == {}
    assert found.label == "samerging"


def test_an_artifact_survives_saving(tmp_path, artifact):
    path = tmp_path / "out.pt"
    save(artifact, path)
    again = load(path)
    for name in (
        "method",
        "settings",
        "suite",
        "sources",
        "seed",
        "history",
        "versions",
        "schema",
        "seconds",
        "used",
    ):
        assert getattr(again, name) == getattr(artifact, name)
    assert again.blocks is not None
    assert again.coefficients is not None
    assert torch.equal(again.coefficients, artifact.coefficients)
    assert {k: list(v) for k, v in again.blocks.items()} == {k: list(v) for k, v in artifact.blocks.items()}
    assert all(torch.equal(again.merged[k], artifact.merged[k]) for k in artifact.merged)
    assert os.listdir(tmp_path) == ["out.pt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_it_holds_plain_values_only(tmp_path, artifact):
    save(artifact, tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    plain = {k: v for k, v in content.items() if k not in ("merged", "coefficients")}
    assert json.loads(json.dumps(plain)) == plain


def test_a_failed_write_leaves_the_old_artifact(tmp_path, artifact, monkeypatch):
    path = tmp_path / "out.pt"
    save(artifact, path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        save(artifact, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.pt"]


def test_missing_truncated_and_foreign_files_are_refused(tmp_path, artifact):
    path = tmp_path / "out.pt"
    with pytest.raises(InputError, match="nothing there"):
        load(path)
    with pytest.raises(InputError, match="a folder"):
        load(tmp_path)
    save(artifact, path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cut short"):
            load(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="expected schema"):
        load(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match="tensors and plain values"):
        load(path)


def changed(content, **changes):
    return {name: value for name, value in {**content, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: changed(c, merged={**c["merged"], "extra": torch.tensor([math.nan])}), "extra: .*nan or inf"),
        (lambda c: changed(c, merged={k: v.long() for k, v in c["merged"].items()}), "weights of a float type"),
        (lambda c: changed(c, merged={}), "got 0 weights"),
        (lambda c: changed(c, history=...), "history: expected .*; got nothing"),
        (lambda c: changed(c, more=1), "more: "),
        (lambda c: changed(c, history={"loss": ["0.5"]}), "history.loss.0: expected a valid number; got '0.5'"),
        (lambda c: changed(c, seed=1.5), "seed: expected a valid integer; got 1.5"),
        (lambda c: changed(c, seconds=math.nan), "seconds: expected a finite number"),
        (lambda c: changed(c, names=["task0", "task0", "task1"]), "distinct names of tasks"),
        (lambda c: changed(c, names=["task0", "task1"]), r"coefficients: expected finite numbers \[2,"),
        (lambda c: changed(c, coefficients=c["coefficients"][:, :1]), "coefficients: expected finite numbers"),
        (lambda c: changed(c, coefficients=c["coefficients"] * math.inf), "coefficients: expected finite numbers"),
        (lambda c: changed(c, blocks=None), "with their blocks, or neither"),
        (lambda c: changed(c, blocks={"model": ["first.weight"]}), "blocks: expected every parameter exactly once"),
        (lambda c: changed(c, schema="mergebound.artifact/1"), "expected schema mergebound.artifact/3; got merge.*/1"),
    ],
)
def test_well_formed_files_that_are_wrong_are_refused(tmp_path, artifact, change, message):
    path = tmp_path / "out.pt"
    save(artifact, path)
    content = torch.load(path, weights_only=True)
    records.save(path, change({k: v for k, v in content.items() if k != records.DIGEST}))
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_artifact_that_contradicts_itself_is_not_written(tmp_path, artifact):
    with pytest.raises(InputError, match="nan or inf"):
        save(replace(artifact, merged={k: v * math.nan for k, v in artifact.merged.items()}), tmp_path / "out.pt")
    assert os.listdir(tmp_path) == []


def test_the_command_writes_an_artifact_and_a_table(tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert main(["--suite", "toy", "--method", "task_arithmetic", "--scale", "1.0", "--out", str(out)]) == 0
    assert "mean over tasks" in capsys.readouterr().out
    made = load(out)
    suite = toy.build()
    assert made.coefficients is not None
    assert bool((made.coefficients == 1).all())
    for t, task in enumerate(suite.tasks):  # the world's known answer: at scale 1 the merge is every expert at once
        scores, expected = (task.forward(p, task.test.inputs) for p in (made.merged, suite.task_vectors.expert(t)))
        assert torch.allclose(scores, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "none"], "suite: expected mini8 or text8 or toy"),
        (["--method", "none"], "method: expected average"),
        (["--suite", "toy", "--out", "missing-folder/out.pt"], "a writable folder"),
        (["--suite", "toy", "--out", "."], "a file name"),
        (["--suite", "toy", "--examples", "999"], "calibration examples"),
        (["--suite", "toy", "--threads", "0"], "threads: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_help_shows_the_options_of_the_method(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--perturbation", "--rho", "--temperature", "--examples", "--granularity"))
