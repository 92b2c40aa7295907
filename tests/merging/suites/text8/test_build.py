"""The build on a tiny network and made-up texts: what it makes, that it resumes, what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from bounds.types import InputError
from merging import merge, suites
from merging.suites.text8 import build as building
from merging.suites.text8.loading import FILES, load
from merging.suites.text8.texts import Sizes
from merging.suites.text8.training import Training
from merging.task import mean_accuracy
from tests.text8_world import TASKS, settings


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The settings of a build that was made once."""
    chosen = settings(tmp_path_factory.mktemp("built"))
    building.build(chosen, TASKS)
    return chosen


def test_a_built_suite_is_loaded_by_its_folder_and_its_experts_are_experts(built):
    suite = suites.load(built.out)
    assert suite.name == "text8"
    assert suite.origin == str(built.out)
    assert suite.made_of_files
    sizes = [{split: len(getattr(task, split)) for split in task.splits} for task in suite.tasks]
    assert sizes == [{"train": 60, "calibration": 12, "validation": 15, "test": 40}] * 2
    manifest = json.loads((built.out / "manifest.json").read_text(encoding="utf-8"))
    for index, task in enumerate(suite.tasks):
        pretrained, expert = (
            mean_accuracy([task], theta, "test")
            for theta in (suite.task_vectors.base, suite.task_vectors.expert(index))
        )
        assert expert > pretrained + 0.2
        assert manifest["test_accuracy"]["experts"][index] == expert
        assert manifest["test_accuracy"]["pretrained"][index] == pretrained
    assert merge("task_arithmetic", suite, scale=0.5).coefficients is not None


def test_the_manifest_lists_every_file_and_no_place(built):
    manifest = json.loads((built.out / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["sha256"]) == contents(built.out).keys() - {"manifest.json"}
    assert str(built.out.parent) not in json.dumps(manifest)
    assert manifest["build"]["training"] == {"rate": 3e-3, "epochs": 2, "batch": 8, "warm_up": 0.1}
    assert len(manifest["log"]["expert_colour"]) == 16


def test_a_build_of_the_shipped_texts_gives_the_same_suite(built, tmp_path):
    again = replace(built, source=built.out / "texts", out=tmp_path / "out", work=tmp_path / "work")
    building.build(again, TASKS)
    first, second = contents(built.out), contents(again.out)
    assert first == second


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_files(built, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def killed(name, *others):
        if name == "animal":
            raise Killed
        return train(name, *others)

    train, chosen = building.fine_tune, replace(built, out=tmp_path / "out", work=tmp_path / "work")
    monkeypatch.setattr(building, "fine_tune", killed)
    with pytest.raises(Killed):
        building.build(chosen, TASKS)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    capsys.readouterr()
    building.build(chosen, TASKS)
    said = capsys.readouterr().err
    assert "trained_animal.safetensors done" in said
    assert "colour" not in said
    assert contents(chosen.out) == contents(built.out)
    building.build(chosen, TASKS)
    assert capsys.readouterr().err == ""


def test_a_damaged_stage_is_made_again(built, tmp_path, capsys):
    (stage,) = (p for p in built.work.iterdir() if p.name.startswith("trained_colour") and p.suffix == ".safetensors")
    whole = stage.read_bytes()
    stage.write_bytes(whole[:-1])
    capsys.readouterr()
    building.build(replace(built, out=tmp_path / "out"), TASKS)
    assert capsys.readouterr().err.count("done") == 1
    assert stage.read_bytes() == whole
    assert contents(tmp_path / "out") == contents(built.out)


def test_other_tasks_leave_an_expert_as_it_is(built, tmp_path, capsys):
    building.build(replace(built, out=tmp_path / "out"), {"animal": TASKS["animal"]})
    assert "expert_animal" not in capsys.readouterr().err
    alone, both = load(tmp_path / "out"), load(built.out)
    assert torch.equal(
        alone.task_vectors.expert(0)["layers.0.widen.weight"], both.task_vectors.expert(1)["layers.0.widen.weight"]
    )
    assert alone.identity != both.identity


def test_an_expert_of_permuted_labels_is_worth_nothing(built, tmp_path):
    chosen = replace(built, out=tmp_path / "out", permuted="animal")
    building.build(chosen, TASKS)
    suite, good = suites.load(chosen.out), load(built.out)
    assert suite.name == "text8-animal-permuted"
    accuracies = [
        mean_accuracy([task], suite.task_vectors.expert(index), "test") for index, task in enumerate(suite.tasks)
    ]
    assert accuracies[1] < 0.55 < accuracies[0]
    assert torch.equal(
        suite.task_vectors.expert(0)["layers.0.widen.weight"], good.task_vectors.expert(0)["layers.0.widen.weight"]
    )


def test_beside_a_bad_expert_the_shipped_ones_are_taken_where_they_would_come_out_the_same(
    built, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(building, "FILES", built.out)
    chosen = replace(built, out=tmp_path / "out", work=tmp_path / "work", permuted="animal")
    building.build(chosen, TASKS)
    said = capsys.readouterr().err
    assert "trained_animal" in said
    assert "trained_colour" not in said
    shipped = (built.out / "expert_colour.safetensors").read_bytes()
    assert (chosen.out / "expert_colour.safetensors").read_bytes() == shipped
    log = json.loads((chosen.out / "manifest.json").read_text(encoding="utf-8"))["log"]
    assert len(log["expert_colour"]) == 16
    other = replace(chosen, out=tmp_path / "other", work=tmp_path / "elsewhere", training=Training(epochs=1))
    building.build(other, TASKS)
    assert "trained_colour" in capsys.readouterr().err
    assert (other.out / "expert_colour.safetensors").read_bytes() != shipped


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"permuted": "colours"}, "permuted: expected colour or animal; got 'colours'"),
        ({"permuted": "animal", "out": FILES}, "out: expected a folder of your own"),
        ({"weights_sha256": "0" * 64}, "expected sha256 000000000000…"),
        ({"rank": 0}, "rank: expected at least 1; got 0"),
        ({"sizes": Sizes(validation=0)}, "sizes.validation: expected at least 1; got 0"),
        ({"training": Training(epochs=0)}, "training.epochs: expected at least 1; got 0"),
        ({"training": Training(warm_up=1.5)}, "training.warm_up: expected a share of the steps; got 1.5"),
        ({"logit_scale": float("nan")}, "logit_scale: expected a number above 0; got nan"),
        ({"length": 99}, "length: expected 3 to 16 tokens, the positions of the model; got 99"),
    ],
)
def test_bad_settings_are_refused(built, tmp_path, others, message):
    chosen = replace(built, **{"out": tmp_path / "out", "work": tmp_path / "work", **others})
    with pytest.raises(InputError, match=message):
        building.build(chosen, TASKS)
    assert not (tmp_path / "out").exists()


def test_missing_texts_and_weights_are_refused(built, tmp_path):
    for others in ({"source": tmp_path}, {"weights": tmp_path}):
        with pytest.raises(InputError, match="nothing there"):
            building.build(replace(built, out=tmp_path / "out", work=tmp_path / "work", **others), TASKS)
