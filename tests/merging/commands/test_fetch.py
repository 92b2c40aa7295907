"""``suite fetch`` against a hub that is a folder: what is listed, what is downloaded, what goes on, what is refused."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bounds.types import InputError
from merging import suites
from merging.commands import fetch
from merging.commands.fetch import Repository, chosen, split_files
from merging.commands.suite import main
from merging.suites.published import MARK, DataSet, find, missing
from tests import published_world as world

huggingface_hub = pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[3]
JUNK = {
    "models/openai/clip-vit-base-patch32": ["tf_model.h5", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"],
    "datasets/tanganke/sun397": ["data/contrast-00000-of-00001.parquet", "sun397.py", ".gitattributes"],
    "datasets/ufldl-stanford/svhn": ["cropped_digits/extra-00000-of-00001.parquet", "full_numbers/train-0.parquet"],
}


@pytest.fixture(scope="module")
def remote(tmp_path_factory) -> Path:
    """Every repository of clip-ta8 with what else stands in such repositories; none of it is read."""
    folder = world.save_clip_suite(tmp_path_factory.mktemp("remote"), "clip-ta8")
    shutil.rmtree(folder / "datasets/ylecun/mnist")  # data of save_to_disk are no repository of the hub
    for split in ("train", "test"):
        place = folder / f"datasets/ylecun/mnist/mnist/{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        world.image_table("mnist", world.ROWS[split], len(split)).to_parquet(place)
    for repository, names in JUNK.items():
        for name in names:
            (folder / repository / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / repository / name).write_bytes(b"x" * 1000)
    (folder / "datasets/tanganke/sun397/README.md").write_text(world.card({"default": ("data", ("train", "contrast"))}))
    return folder


class Hub:
    """The client and the download of huggingface_hub, of a folder."""

    def __init__(self, remote: Path) -> None:
        self.remote, self.asked, self.copied, self.fails_after = remote, [], [], 10**9

    def _info(self, kind: str, name: str, files_metadata: bool, timeout: float) -> Any:
        assert files_metadata
        assert timeout <= 30
        self.asked.append(name)
        place = self.remote / kind / name
        files = [path for path in place.rglob("*") if path.is_file()]
        siblings = [SimpleNamespace(rfilename=p.relative_to(place).as_posix(), size=p.stat().st_size) for p in files]
        return SimpleNamespace(sha=f"sha of {name}", siblings=siblings)

    def model_info(self, name: str, *, files_metadata: bool, timeout: float) -> Any:
        return self._info("models", name, files_metadata, timeout)

    def dataset_info(self, name: str, *, files_metadata: bool, timeout: float) -> Any:
        return self._info("datasets", name, files_metadata, timeout)

    def snapshot_download(self, name: str, *, repo_type: str, revision: str, local_dir: Any, allow_patterns: Any, **_):
        assert revision == f"sha of {name}"
        place = self.remote / f"{repo_type}s" / name
        for path in sorted(place.rglob("*")):
            relative = path.relative_to(place).as_posix()
            target = Path(local_dir) / relative
            wanted = any(fnmatch.fnmatch(relative, pattern) for pattern in allow_patterns)
            if not path.is_file() or not wanted or target.is_file():
                continue
            if len(self.copied) >= self.fails_after:
                raise ConnectionError("the line was cut")
            self.copied.append(f"{name}/{relative}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


@pytest.fixture
def hub(remote, monkeypatch, tmp_path):
    found = Hub(remote)
    world.use(monkeypatch, tmp_path / "here", tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_without_yes_everything_is_listed_and_nothing_is_written(hub, tmp_path, capsys):
    assert main(["fetch", "clip-ta8"]) == 0
    shown = capsys.readouterr().out
    suite = find("clip-ta8")
    for name in (suite.base, *suite.experts.values(), *(data.repository for data in suite.data.values())):
        assert name in shown
    assert f"free in {tmp_path}" in shown
    assert "nothing was downloaded; add --yes" in shown
    assert not (tmp_path / "here").exists()
    assert len(hub.asked) == len(set(hub.asked)) == 17
    sizes = sum(sum(fetch.listing(r, hub).files.values()) for r in fetch.repositories(suite, tmp_path / "here"))
    assert f"{fetch._size(sizes)} to download" in shown


def test_what_was_fetched_is_loaded_and_nothing_is_asked_again(hub, tmp_path, capsys):
    assert main(["fetch", "clip-ta8", "--yes"]) == 0
    assert "use --suite clip-ta8:ViT-B-32" in capsys.readouterr().out
    assert not [name for names in JUNK.values() for name in names if any(c.endswith(name) for c in hub.copied)]
    assert not list((tmp_path / "here").rglob(MARK))
    suite = suites.load("clip-ta8")
    assert {len(task.test) for task in suite.tasks} == {36}
    hub.asked.clear()
    assert main(["fetch", "clip-ta8", "--yes"]) == 0
    assert hub.asked == []
    assert suites.load("clip-ta8").identity == suite.identity


def test_a_download_that_was_cut_goes_on(hub, tmp_path, capsys):
    hub.fails_after = 12
    assert main(["fetch", "clip-ta8", "--yes"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ConnectionError: the line was cut; run the same command again: it goes on where it stopped" in message
    with pytest.raises(InputError, match=r"a download that has not ended|nothing there"):
        suites.load("clip-ta8")
    cut = next(iter((tmp_path / "here").rglob(MARK))).parent
    assert missing(find("clip-ta8"), tmp_path / "here")[cut] == "a download that has not ended"
    first, hub.fails_after = list(hub.copied), 10**9
    repository = next(r for r in fetch.repositories(find("clip-ta8"), tmp_path / "here") if r.folder == cut)
    found, inside = fetch.listing(repository, hub), [n for n in first if n.startswith(f"{repository.name}/")]
    assert found.there == sum(found.files[name.removeprefix(f"{repository.name}/")] for name in inside)
    hub.asked.clear()
    assert main(["fetch", "clip-ta8", "--yes"]) == 0
    assert len(hub.copied) == len(set(hub.copied)) > len(first)
    assert len(hub.asked) < 17, "what was there as a whole is not asked for"
    suites.load("clip-ta8")


def test_a_copied_folder_with_the_hubs_own_card_is_as_good(hub, remote, tmp_path, monkeypatch):
    assert main(["fetch", "clip-ta8", "--yes", "--to", str(tmp_path / "there")]) == 0
    assert not (tmp_path / "here").exists()
    monkeypatch.setenv("MERGEBOUND_HUB", str(tmp_path / "there"))
    card = tmp_path / "there" / "datasets/ufldl-stanford/svhn/README.md"
    assert "config_name: cropped_digits" in card.read_text()
    before = [len(task.test) for task in suites.load("clip-ta8").tasks]
    shutil.copy(remote / "datasets/ufldl-stanford/svhn/README.md", card)
    assert [len(task.test) for task in suites.load("clip-ta8").tasks] == before


def test_too_little_room_is_refused_before_the_first_byte(hub, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000))
    assert main(["fetch", "clip-ta8", "--yes"]) == 2
    assert "got 10 kB free; free some, or choose another folder with --to" in capsys.readouterr().err
    assert hub.copied == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
            r"model openai/clip-vit-base-patch32: expected an answer of the hub; got \w+: .*; connect to it, or copy "
            "the folder from a machine that has it and name it with MERGEBOUND_HUB",
        ),
        (
            {"HF_HUB_OFFLINE": "1"},
            "suite fetch: expected a network; got HF_HUB_OFFLINE=1; unset it, or connect to it, .*",
        ),
    ],
)
def test_without_a_network_one_line_and_quickly(tmp_path, environment, message):
    """In a process of its own, as users run it: nothing else has imported the hub's client there."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "merging", "suite", "fetch", "clip-ta8", "--to", str(tmp_path / "hub")],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - start < 40
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(f"error: {message}", done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "hub").exists()


def test_an_unknown_suite_is_refused_without_a_network(capsys):
    assert main(["fetch", "clip-ta9"]) == 2
    assert "published suite: expected clip-ta8 or" in capsys.readouterr().err


def test_the_files_that_are_read_are_chosen_by_their_names():
    data = DataSet(repository="a/b", config="cola", test="validation")
    names = ["README.md", "cola/train-00000-of-00001.parquet", "cola/validation-00000-of-00001.parquet"]
    names += ["cola/test-00000-of-00001.parquet", "mnli/train-00000-of-00001.parquet"]
    assert chosen(Repository("dataset", "a/b", Path("."), (data,)), names) == names[1:3]
    matched = DataSet(repository="a/b", config="mnli", test="validation_matched")
    names += ["mnli/validation_matched-0.parquet", "mnli/validation_mismatched-0.parquet"]
    assert split_files(matched, "validation_matched", names) == ["mnli/validation_matched-0.parquet"]
    tars = ["test/0.tar", "train/0.tar", "train/10.tar", "train/nshards.txt", "classnames.txt"]
    assert split_files(DataSet(repository="a/b"), "train", tars) == ["train/0.tar", "train/10.tar"]
    with pytest.raises(
        InputError, match=r"repository a/b: expected files of split 'valid'; got data/validation-0.parquet"
    ):
        split_files(DataSet(repository="a/b"), "valid", ["data/validation-0.parquet"])
    model = Repository("model", "c/d", Path("."))
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shards += ["config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", "merges.txt"]
    assert set(chosen(model, [*shards, "pytorch_model.bin", "a.h5"])) == set(shards) - {"pytorch_model.bin.index.json"}
    assert chosen(model, ["config.json", "pytorch_model.bin", "tf_model.h5"]) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(InputError, match=r"repository c/d: expected model.safetensors or .*; got config.json, a.h5"):
        chosen(model, ["config.json", "a.h5"])
