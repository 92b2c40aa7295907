"""Published suites out of a folder in the hub's layout, against the libraries' own scores."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bounds.types import InputError
from merging import artifact, suites
from merging.commands.merge import main as merging
from merging.suites.published import files, find
from merging.task import score_task
from tests import published_world as world


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    world.save_clip_suite(folder, "clip-tall14")
    return world.save_glue(folder)


@pytest.fixture(autouse=True)
def _small(hub, monkeypatch, tmp_path):
    world.use(monkeypatch, hub, tmp_path)


def own_scores(hub: Path, task: str, images: list[Any]) -> torch.Tensor:
    """Zero-shot scores by transformers' CLIP with the expert's vision tower in its place."""
    suite, prompt = find("clip-tall14"), files.prompts()[task]
    place = files.model_folder(hub, suite.base)
    clip: Any = transformers.CLIPModel.from_pretrained(place)
    expert: Any = transformers.CLIPVisionModel.from_pretrained(files.model_folder(hub, suite.experts[task]))
    tokens = transformers.AutoTokenizer.from_pretrained(place)
    processor = transformers.CLIPImageProcessor.from_pretrained(place)
    rows = []
    with torch.no_grad():
        for name in prompt["classes"]:
            texts = tokens([t.format(name) for t in prompt["templates"]], padding=True, return_tensors="pt")
            pooled = clip.text_model(texts["input_ids"], attention_mask=texts["attention_mask"]).pooler_output
            one = clip.text_projection(pooled)
            one = (one / one.norm(dim=-1, keepdim=True)).mean(0)
            rows.append(one / one.norm())
        pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        image = clip.visual_projection(expert(pixel_values=pixels).pooler_output)
        image = image / image.norm(dim=-1, keepdim=True)
        return clip.logit_scale.exp() * image @ torch.stack(rows).T


def test_a_suite_of_clips_scores_as_its_library_does(hub):
    suite = suites.load("clip-ta8")
    assert (suite.name, suite.origin) == ("clip-ta8-ViT-B-32", "clip-ta8")
    assert suites.made_of_files(suite.origin)
    named = {"dtd": "tanganke/dtd", "svhn": "ufldl-stanford/svhn cropped_digits"}
    places = {(task, split): f"{name} {split}" for task, name in named.items() for split in ("train", "test")}
    digests = [suite.sources[f"{task}/data/{split}/datasets/{name}"] for (task, split), name in places.items()]
    assert len(set(digests)) == 4
    data = find("clip-ta8").data["sun397"]
    parquet = str(files.data_folder(hub, data.repository) / "data" / "test-00000-of-00001.parquet")
    test = world.datasets.Dataset.from_parquet(parquet)
    task = suite.tasks[0]
    theirs = own_scores(hub, "sun397", list(test["image"]))
    ours = score_task(task, suite.task_vectors.expert(0), task.test.inputs, "test", "expert")
    assert len(ours) == 36, "a share of the test split is validation"
    for split in ("test", "validation"):
        sample = getattr(task, split)
        mine = score_task(task, suite.task_vectors.expert(0), sample.inputs, split, "expert")
        for row, label in zip(mine, sample.labels, strict=True):
            near = int((theirs - row).abs().amax(1).argmin())
            torch.testing.assert_close(row, theirs[near], rtol=1e-4, atol=1e-4)
            assert int(label) == test[near]["label"], "labels go by number, whatever the data calls its classes"


def test_splits_are_what_the_table_says(hub):
    tasks = {task.name: task for task in suites.load("clip-tall14").tasks}
    sizes = {name: {s: len(getattr(task, s)) for s in task.splits} for name, task in tasks.items()}
    cut = {"train": 24, "calibration": 16, "validation": 4, "test": 36}
    assert sizes["dtd"] == sizes["mnist"] == sizes["fer2013"] == sizes["svhn"] == cut
    assert sizes["oxford_flowers102"] == {"train": 40, "calibration": 16, "validation": 10, "test": 24}
    assert sizes["pcam"] == {"train": 24, "calibration": 16, "validation": 10, "test": 40}
    assert list(tasks["svhn"].class_names) == list("0123456789")


def test_gpt2s_read_texts_and_pairs_with_their_own_heads(hub):
    suite = suites.load("gpt2-glue7:gpt2")
    assert [len(task.class_names) for task in suite.tasks] == [2, 3, 2, 2, 2, 2, 2]
    assert suite.tasks[1].class_names[2] == "class 2"
    place = files.model_folder(hub, "tanganke/gpt2_mnli")
    module: Any = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    inputs: Any = suite.tasks[1].test.inputs
    ours = score_task(suite.tasks[1], suite.task_vectors.expert(1), inputs, "test", "expert")
    with torch.no_grad():
        theirs = module(inputs["input_ids"][:, :40], attention_mask=inputs["attention_mask"][:, :40]).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_name_works_in_commands_and_finds_the_suite_again(hub, tmp_path, monkeypatch):
    from diagnostics import bound_report

    monkeypatch.chdir(tmp_path)
    assert merging(["--suite", "clip-ta8", "--method", "average"]) == 0
    assert artifact.load("out.pt").origin == "clip-ta8"
    assert bound_report.main(["--merged", "out.pt", "--sections", "accuracy", "--workers", "1"]) == 0
    before = suites.load("clip-ta8").identity
    (hub / "clip-ta8-ViT-B-32.yaml").write_text("name: spoilt\n")
    assert suites.load("clip-ta8").identity == before, "the suite file is the table's, whatever stands there"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda hub: shutil.rmtree(hub / "models"),
            r"expected its files in .*patch32 \(and 8 more\); got nothing there",
        ),
        (lambda hub: (hub / "datasets/tanganke/dtd" / files.MARK).touch(), "dtd; got a download that has not ended"),
        (
            lambda hub: (hub / "datasets/tanganke/dtd/data/test-00001-of-00002.parquet").unlink(),
            r"dtd; got 1 of 2 files test-\*; mergebound suite fetch clip-ta8, or name a folder .* MERGEBOUND_HUB",
        ),
        (
            lambda hub: (hub / "models/tanganke/clip-vit-base-patch32_dtd/model.safetensors").unlink(),
            "patch32_dtd; got no .safetensors or .bin in it",
        ),
    ],
)
def test_what_was_not_fetched_is_one_line(hub, tmp_path, monkeypatch, spoil, match):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    monkeypatch.setenv(files.FOLDER_VARIABLE, str(copy))
    spoil(copy)
    with pytest.raises(InputError, match=match):
        suites.load("clip-ta8")


def test_parts_of_files_are_counted_from_any_number_and_with_hashes(tmp_path):
    def lacks(*names):
        return files._absent_parts([tmp_path / name for name in names])

    assert lacks("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors") is None
    assert lacks("model-00002-of-00002.safetensors") == "1 of 2 files model-*"
    assert lacks("train-00000-of-00002-ab.parquet", "train-00001-of-00002-cd.parquet", "one.parquet") is None
    assert lacks("a/train-00000-of-00002.parquet", "b/train-00001-of-00002.parquet") == "1 of 2 files train-*"
