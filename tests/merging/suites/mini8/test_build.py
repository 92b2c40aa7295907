"""The whole build, on two toy sources: what it writes is a suite, and what was made is not made again."""

import json
from dataclasses import replace

import pytest
import torch

from bounds.types import InputError
from merging import suites
from merging.checkpoints import read_safetensors
from merging.suites.mini8 import loading
from merging.suites.mini8.build import Settings, build
from merging.suites.mini8.experts import FineTuning
from merging.suites.mini8.images import Sizes
from merging.suites.mini8.pretraining import Pretraining
from merging.suites.stages import Stages
from tests.merging.suites.mini8.worlds import write_source


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    tasks = {name: write_source(folder, name, seed) for seed, name in enumerate(("first", "second"))}
    others = {"third": write_source(folder, "third", 2)}
    settings = Settings(
        source=folder,
        out=folder / "out",
        work=folder / "work",
        splits=Sizes(held_apart=12, test_images=20),
        width=32,
        pretraining=Pretraining(epochs=1, batch=32, glyphs=20),
        fine_tuning=FineTuning(steps=4, batch=8, kept_images=4),
        rank=2,
        threads=1,
    )
    build(settings, tasks, others)
    return settings, tasks, others


def test_what_was_built_is_a_suite_that_its_folder_names(world):
    settings, tasks, _ = world
    suite = suites.load(settings.out)
    assert list(suite.task_vectors.names) == list(tasks)
    assert suite.made_of_files
    manifest = json.loads((settings.out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == loading.SCHEMA
    assert set(manifest["test_accuracy"]) == {"pretrained", "experts", "average"}
    assert len(manifest["log"]["pretraining"]) == 1


def test_an_expert_is_of_the_rank_and_differs_from_another(world):
    vectors = suites.load(world[0].out).task_vectors
    change = [vectors.expert(i)["conv1.weight"] - vectors.base["conv1.weight"] for i in (0, 1)]
    assert all(int(torch.linalg.matrix_rank(c.flatten(1), rtol=1e-3)) == 2 for c in change)
    assert not torch.allclose(change[0], change[1])


def test_an_expert_is_the_network_that_was_fine_tuned(world):
    """Tensors that keep their whole change: θ_0 plus what the training's stage holds."""
    settings, tasks, _ = world
    vectors = suites.load(settings.out).task_vectors
    for index, name in enumerate(tasks):
        (kept,) = (path for path in settings.work.glob(f"change_{name}-*.safetensors"))
        change = read_safetensors(kept)["positional_embedding"]
        assert 0 < float(change.abs().max()) < 0.1
        found = vectors.expert(index)["positional_embedding"] - vectors.base["positional_embedding"]
        torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 0},
        {"width": 40},
        {"rank": 0},
        {"splits": Sizes(pretrain_share=1.0)},
        {"fine_tuning": FineTuning(least_scale=0.0)},
        {"pretraining": Pretraining(named_share=float("nan"))},
    ],
)
def test_settings_that_no_build_can_have_are_refused(world, changed, tmp_path):
    settings, tasks, others = world
    with pytest.raises(InputError, match=r"expected .*; got "):
        build(replace(settings, out=tmp_path / "out", work=tmp_path / "work", **changed), tasks, others)
    assert not list(tmp_path.iterdir())


def test_a_second_build_makes_nothing_and_gives_the_same_files(world, capfd):
    settings, tasks, others = world
    before = {path.name: path.read_bytes() for path in settings.out.iterdir()}
    capfd.readouterr()
    build(settings, tasks, others)
    assert {path.name: path.read_bytes() for path in settings.out.iterdir()} == before
    assert "done in" not in capfd.readouterr().err


def test_a_build_that_was_killed_goes_on_to_the_same_files(world, tmp_path, monkeypatch):
    """Killed when the second expert is to be made; the first, and θ_0, are not made again."""
    settings, tasks, others = world
    halted = replace(settings, out=tmp_path / "out", work=tmp_path / "work")
    whole, made = Stages.file, []

    def halt(self, name, made_of, make):
        if name == "change_second.safetensors" and "halted" not in made:
            made.append("halted")
            raise KeyboardInterrupt
        return whole(self, name, made_of, make)

    monkeypatch.setattr(Stages, "file", halt)
    with pytest.raises(KeyboardInterrupt):
        build(halted, tasks, others)
    assert not (halted.out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in halted.work.iterdir()}
    build(halted, tasks, others)
    assert {name: (halted.work / name).stat().st_mtime_ns for name in kept} == kept
    for path in settings.out.iterdir():
        assert (halted.out / path.name).read_bytes() == path.read_bytes()
