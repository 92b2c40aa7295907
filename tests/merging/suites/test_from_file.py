"""A suite file of small text classifiers, in the libraries' own formats, against the libraries' own scores."""

import gzip
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bounds.types import InputError
from diagnostics import bound_report, export
from merging import artifact, load_suite, merge
from merging.commands.merge import main as merging
from merging.commands.suite import main as suite_command
from merging.task import score_task
from tests.merging.models.worlds import WORDS, save_text

ROOT = Path(__file__).resolve().parents[3]
SUITE = """\
name: reviews
model: {kind: hf_text, base: base, max_length: 12}
data: {text: sentence, label: y}
splits: {train: 0.3, calibration: 0.2, validation: 0.25, test: 0.25}
cache: none
tasks:
  - name: mood
    expert: mood
    data: mood.jsonl.gz
  - name: size
    expert: size
    classes: [short, middle, long]
    data:
      train: size_train.csv
      test: {path: size_test.csv}
    splits:
      train: {calibration: 12, validation: 0.3}
"""


def sentences(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS[4:], k=generator.randint(2, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    save_text(folder / "base", "bert", 0, "AutoModel")
    for name, seed, labels in (("mood", 1, ["bad", "good"]), ("size", 2, ["a", "b", "c"])):
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        if name == "size":
            names = {"num_labels": 3}
        save_text(folder / name, "bert", seed, "AutoModelForSequenceClassification", **names)
    texts = sentences(80, 0)
    with gzip.open(folder / "mood.jsonl.gz", "wt") as file:
        for index, text in enumerate(texts):
            print(json.dumps({"sentence": text, "y": ["good", "bad"][index % 2]}), file=file)
    for name, seed, count in (("size_train.csv", 1, 60), ("size_test.csv", 2, 30)):
        rows = [
            f"{text},{['short', 'middle', 'long'][min(len(text.split()) // 5, 2)]}" for text in sentences(count, seed)
        ]
        (folder / name).write_text("sentence,y\n" + "\n".join(rows) + "\n")
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def own_scores(folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    module: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return module(**tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")).logits


def test_tasks_splits_classes_and_scores(folder):
    suite = load_suite(folder / "suite.yaml")
    assert (suite.name, suite.origin) == ("reviews", str(folder / "suite.yaml"))
    mood, size = suite.tasks
    assert {split: len(getattr(mood, split)) for split in mood.splits} == {
        "train": 24,
        "calibration": 16,
        "validation": 20,
        "test": 20,
    }
    assert {split: len(getattr(size, split)) for split in size.splits} == {
        "train": 30,
        "calibration": 12,
        "validation": 18,
        "test": 30,
    }
    assert list(mood.class_names) == ["bad", "good"], "the expert's order, not the file's"
    assert list(size.class_names) == ["short", "middle", "long"]
    texts = [line.rsplit(",", 1)[0] for line in (folder / "size_test.csv").read_text().splitlines()[1:]]
    ours = score_task(size, suite.task_vectors.expert(1), size.test.inputs, "test", "expert")
    torch.testing.assert_close(ours, own_scores(folder / "size", texts), rtol=1e-5, atol=1e-5)
    models = {"base/model.safetensors", "base/config.json", "base/tokenizer.json", "mood/expert/model.safetensors"}
    data = {"mood/data/all/mood.jsonl.gz", "size/data/train/size_train.csv", "size/data/test/size_test.csv"}
    assert set(suite.sources) >= {"suite file", *models, *data}
    assert all(len(value) == 64 for value in suite.sources.values())


def test_one_path_from_files_to_files(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert suite_command(["check", str(folder / "suite.yaml")]) == 0
    assert "look at task mood" in capsys.readouterr().out, "a random expert is no better than its base"
    steps = ["--steps", "2", "--batch", "4", "--examples", "8"]
    assert merging(["--suite", str(folder / "suite.yaml"), "--method", "samerging", *steps]) == 0
    found = artifact.load("out.pt")
    assert found.origin == str(folder / "suite.yaml")
    small = "--held-out 4 --kernel 4 --train 4 --draws 4 --points 3 --control-points 2"
    assert bound_report.main(["--merged", "out.pt", "--workers", "1", *small.split()]) == 0
    content = json.loads(Path("report/report.json").read_text())
    assert not content["provenance"]["missing"]
    capsys.readouterr()
    assert export.main(["out.pt", "--to", "merged", "--report", "report/report.json"]) == 0
    assert "README.md says how to load it" in capsys.readouterr().out
    suite = load_suite(folder / "suite.yaml")
    task = suite.tasks[1]
    texts = [line.rsplit(",", 1)[0] for line in (folder / "size_test.csv").read_text().splitlines()[1:]]
    ours = score_task(task, found.merged, task.test.inputs, "test", "merged")
    torch.testing.assert_close(own_scores(Path("merged/size"), texts), ours, rtol=1e-5, atol=1e-5)
    card = Path("merged/README.md").read_text()
    for part in ("samerging", "mood", "| size | 30 |", "Certified: at most", "sha256", "merging_weights.pt"):
        assert part in card, part
    weights = torch.load("merged/merging_weights.pt", weights_only=True)
    assert tuple(weights.shape) == (2, len(suite.task_vectors.base))
    assert export.main(["out.pt", "--to", "merged"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


def test_a_suite_that_moved_is_named_and_one_that_changed_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    suite = load_suite(folder / "suite.yaml")
    artifact.save(merge("average", suite), "out.pt")
    moved = folder / "moved.yaml"
    (folder / "suite.yaml").rename(moved)
    try:
        assert bound_report.main(["--merged", "out.pt", "--sections", "accuracy"]) == 2
        assert "got nothing there; say where it is now with --suite" in capsys.readouterr().err
        sections = ["--sections", "accuracy", "--workers", "1"]
        assert bound_report.main(["--merged", "out.pt", "--suite", str(moved), "--out", "a", *sections]) == 0
        moved.write_text(SUITE + "seed: 1\n")
        assert bound_report.main(["--merged", "out.pt", "--suite", str(moved), "--out", "a", *sections]) == 2, "kept"
        assert "artifact's sources: expected the files of the suite, by sha256" in capsys.readouterr().err
        assert bound_report.main(["--merged", "out.pt", "--suite", "toy", "--out", "a", *sections]) == 2
        assert "artifact's tasks" in capsys.readouterr().err
        assert bound_report.main(["--merged", "out.pt", "--suite", str(moved), "--out", "b", *sections]) == 2
        assert "artifact's sources: expected the files of the suite, by sha256" in capsys.readouterr().err
        moved.write_text(SUITE)
    finally:
        moved.rename(folder / "suite.yaml")
    assert bound_report.main(["--merged", "out.pt", "--sections", "accuracy", "--workers", "1"]) == 0


def test_a_broken_head_is_named(folder, tmp_path):
    weights = load_file(folder / "mood" / "model.safetensors")
    shutil.copytree(folder / "mood", tmp_path / "broken")
    save_file({**weights, "classifier.bias": torch.full((2,), torch.inf)}, tmp_path / "broken" / "model.safetensors")
    path = folder / "broken.yaml"
    path.write_text(SUITE.replace("expert: mood", f"expert: {tmp_path / 'broken'}"))
    with pytest.raises(InputError, match=r"line 7, tasks.0: expert .*broken, classifier.bias: expected finite numbers"):
        load_suite(path)


def test_the_same_splits_in_another_process(folder):
    code = "import sys; from merging import load_suite; print(load_suite(sys.argv[1]).identity)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "suite.yaml")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    suite = load_suite(folder / "suite.yaml")
    assert done.stdout.strip() == suite.identity
    again = load_suite(folder / "suite.yaml").tasks[0].test.inputs
    here: Any = suite.tasks[0].test.inputs
    assert torch.equal(here["input_ids"], again["input_ids"])  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            ("kind: hf_text", "kind: hf_txt"),
            r"line 2, model: model kind: expected .*hf_text.*; got 'hf_txt'",
        ),
        (("max_length: 12", "max_len: 12"), r"line 2, model: model, max_len: expected max_length or"),
        (("max_length: 12", "max_length: 99"), r"line 2, model: max_length: expected 1 to 24 tokens"),
        (("base: base", "base: bas"), r"line 2, model: model bas: expected a folder with transformers' config.json"),
        (("expert: mood", "expert: mod"), r"line 7, tasks.0: .*mod"),
        (("mood.jsonl.gz", "moood.jsonl.gz"), r"line 7, tasks.0: data .*moood.jsonl.gz: expected a file"),
        (("text: sentence", "text: sentences"), r"line 7, tasks.0: .*sentences"),
        (("splits: {train: 0.3,", "splits: {train: 0.9,"), r"line 7, tasks.0: splits"),
        (("[short, middle, long]", "[short, long]"), r"line 10, tasks.1: .*middle"),
        (("[short, middle, long]", "[short, middle, long, huge]"), r"line 10, tasks.1: class names: expected 3"),
        (("{calibration: 12,", "{test: 12,"), r"line 10, tasks.1"),
        (("name: mood", "name: a/b"), r"line 7, tasks.0.name: expected a name for a folder; got 'a/b'"),
        (("name: mood", "name: heads"), r"line 7, tasks.0.name: expected a name for a folder"),
        (
            ("splits: {train: 0.3, calibration: 0.2, validation: 0.25, test: 0.25}", ""),
            r"tasks.0: splits: expected shares",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder, change, match):
    path = folder / "wrong.yaml"
    path.write_text(SUITE.replace(*change))
    with pytest.raises(InputError, match=match):
        load_suite(path)


FACTORY = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, SIGN * 3 * SIGN))
"""
OWN = """\
model: {kind: torch, base: base.pt, factory: "factory_for_tests:build", head: ["2.*"]}
splits: {calibration: 0.3, validation: 0.3, test: 0.4}
cache: none
tasks:
  - {name: one, expert: one.pt, data: one.npz}
  - {name: two, expert: two.pt, data: two.npz}
"""


def test_a_factory_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("factory_for_tests.py").write_text(FACTORY.replace("SIGN", "1"))
    Path("own.yaml").write_text(OWN)
    experts: dict[str, Any] = {}
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        experts[name] = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
        experts[name](3 * torch.randn(20, 5))
        torch.save(experts[name].eval().state_dict(), f"{name}.pt")
        generator = np.random.default_rng(seed)
        np.savez(f"{name}.npz", x=generator.normal(size=(60, 5)).astype("float32"), y=generator.integers(0, 3, 60))
    Path("own.yaml").write_text(OWN.replace("data: one.npz", "data: one.npz, classes: [a, b, c]").replace(
        "data: two.npz", "data: two.npz, classes: [a, b, c]"))  # fmt: skip
    suite = load_suite("own.yaml")
    assert not suite.made_of_files, "the factory's code is in no file that is hashed"
    assert suite.learned_heads == {"one", "two"}
    for index, task in enumerate(suite.tasks):
        with torch.no_grad():
            own = experts[task.name](task.test.inputs)
        ours = score_task(task, suite.task_vectors.expert(index), task.test.inputs, "test", "expert")
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    found = merge("average", suite)
    assert found.fingerprint is not None
    export.export(found, suite, Path("merged"))
    assert Path("merged/README.md").is_file()
    sys.modules.pop("factory_for_tests", None)
