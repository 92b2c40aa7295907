"""The shipped suite: whole, disjoint, small, and behaving like published CLIP suites."""

import hashlib
import json
import shutil

import pytest
import torch

from bounds.types import InputError, leaves
from merging import merge, suites
from merging.checkpoints import read_safetensors
from merging.models.open_clip import preprocess
from merging.suites import mini8
from merging.suites.mini8.sources import TASKS
from merging.task import mean_accuracy

pytestmark = pytest.mark.mini8


@pytest.fixture(scope="module")
def suite():
    return suites.load("mini8")


@pytest.fixture(scope="module")
def manifest():
    return json.loads((mini8.FILES / "manifest.json").read_text(encoding="utf-8"))


def test_it_is_small_and_lists_every_file(manifest):
    files = {p.name: p for p in mini8.FILES.iterdir() if p.name != "manifest.json"}
    assert set(files) == set(manifest["sha256"])
    assert sum(p.stat().st_size for p in mini8.FILES.iterdir()) <= 45e6
    assert [t["name"] for t in manifest["tasks"]] == list(TASKS)
    assert all(t["licence"] for t in manifest["tasks"])


def test_splits_are_disjoint_and_calibration_has_no_labels(suite):
    for task in suite.tasks:
        seen = {}
        for split in ("train", "calibration", "validation", "test"):
            images = leaves(getattr(task, split).inputs)[0]
            seen[split] = {hashlib.sha256(image.numpy().tobytes()).digest() for image in images}
            assert len(images) >= 60
        assert task.calibration.labels is None
        names = list(seen)
        shared = [seen[a] & seen[b] for i, a in enumerate(names) for b in names[i + 1 :]]
        assert not any(shared), f"{task.name}: equal images in two splits"


def test_it_behaves_like_published_suites(suite, manifest):
    """Experts >= 88 %, averaging gains >= .2 of the way to them, TSV-M more, and nothing is near the experts."""
    tasks, vectors = suite.tasks, suite.task_vectors
    experts = [mean_accuracy([task], vectors.expert(i), "test") for i, task in enumerate(tasks)]
    pretrained = mean_accuracy(tasks, vectors.base, "test")
    average, tsv_m = (mean_accuracy(tasks, merge(m, vectors, tasks).merged, "test") for m in ("average", "tsv_m"))
    expert = sum(experts) / len(experts)
    assert expert >= 0.88
    assert 0.40 <= pretrained <= 0.72
    assert 0.2 <= (average - pretrained) / (expert - pretrained) <= 0.5
    assert (tsv_m - average) / (expert - pretrained) >= 0.2
    assert tsv_m <= expert - 0.02
    recorded = manifest["test_accuracy"]
    assert experts == pytest.approx(recorded["experts"], abs=0.01)
    assert average == pytest.approx(sum(recorded["average"]) / 8, abs=0.01)


def test_a_short_learned_merge_beats_averaging(suite):
    tasks, vectors = suite.tasks, suite.task_vectors
    learned = merge("samerging", vectors, tasks, steps=40, batch=4, examples=32, perturbation="none")
    gain = mean_accuracy(tasks, learned.merged, "validation") - mean_accuracy(
        tasks, merge("average", vectors, tasks).merged, "validation"
    )
    assert gain > 0.01


def test_the_perturbation_of_the_defaults_acts(suite):
    """λ with perturbation=coefficients, rho=0.07 differs from none, and one seed gives one λ."""
    settings = {"steps": 3, "batch": 2, "examples": 8, "rho": 0.07}
    runs = [
        merge("samerging", suite.task_vectors, suite.tasks, perturbation=p, **settings)  # pyright: ignore
        for p in ("none", "coefficients", "coefficients")
    ]
    none, sam, again = (run.coefficients for run in runs)
    assert none is not None
    assert sam is not None
    assert again is not None
    assert torch.equal(sam, again)
    assert float((none - sam).abs().max()) > 1e-4
    assert runs[1].history["perturbation_norm"] == pytest.approx([0.07] * 3, rel=1e-5)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="manifest"):
        mini8.load(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(mini8.FILES, folder)
    path = folder / "expert_mnist.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"expert_mnist.safetensors: expected sha256"):
        mini8.load(folder)
    path.unlink()
    with pytest.raises(InputError, match="nothing there"):
        mini8.load(folder)


def test_preprocessing_pads_grey_images_with_black():
    grey = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    pixels = preprocess(grey, 32, torch.float32)
    assert pixels.shape == (2, 3, 32, 32)
    assert bool((pixels[:, :, 2:30, 2:30] == 1).all())
    assert bool((pixels[:, :, :2] == -1).all())
    colour = torch.arange(2 * 32 * 32 * 3, dtype=torch.int32).remainder(256).to(torch.uint8).view(2, 32, 32, 3)
    assert torch.equal(preprocess(colour, 32, torch.float64)[0, 1], colour[0, :, :, 1].double() / 127.5 - 1)


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="nothing there"):
        read_safetensors(path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="complete safetensors file"):
        read_safetensors(path)
