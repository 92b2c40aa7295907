"""The library ``datasets``: saved folders, splits, classes, images; without a network one line."""

import socket

import numpy as np
import pytest

from bounds.types import InputError
from merging.data import Source, groups, hub, read

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def table(count):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"sentence": [f"text {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_folder_with_splits(tmp_path):
    datasets.DatasetDict({"train": table(6), "test": table(4)}).save_to_disk(tmp_path / "saved")
    for source in (Source(path="saved", split="test"), Source(dataset="saved", split="test")):
        found = read(source, tmp_path)
        assert list(found.inputs) == [f"text {i}" for i in range(4)]
        assert found.labels is not None
        assert (found.labels.tolist(), found.class_names) == ([0, 1, 0, 1], ("no", "yes"))
        assert [path.suffix for path in found.files] == [".arrow"]
    keys = {read(Source(path="saved", split=split), tmp_path).key() for split in ("train", "test")}
    assert len(keys) == 2
    with pytest.raises(InputError, match="data set saved: expected split 'dev'; got splits train, test"):
        read(Source(path="saved", split="dev"), tmp_path)
    with pytest.raises(InputError, match="expected a split; got splits train, test; name one of these"):
        read(Source(path="saved"), tmp_path)


def test_a_saved_folder_of_one_table(tmp_path):
    table(3).save_to_disk(tmp_path / "saved")
    assert len(read(Source(path="saved"), tmp_path)) == 3
    with pytest.raises(InputError, match="expected a column 'text'; got columns sentence, label"):
        read(Source(path="saved", text="text"), tmp_path)


def test_labels_hidden_by_the_publisher_are_named(tmp_path):
    features = table(1).features
    datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, -1]}, features=features).save_to_disk(
        tmp_path / "s"
    )
    with pytest.raises(InputError, match=r"data set s, row 1: expected a label in 0\.\.1; got -1; .*label: null"):
        read(Source(path="s"), tmp_path)
    assert read(Source(path="s", label=None), tmp_path).labels is None


def test_images_are_decoded_when_they_are_asked_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [Image.fromarray(value) for value in pixels], "label": [0, 1, 2, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found = read(Source(path="saved"), tmp_path)
    assert all(np.array_equal(np.asarray(image), value) for image, value in zip(found.inputs, pixels, strict=True))
    assert len(groups(found.inputs).unique()) == 4


def test_a_folder_that_the_library_reads_itself(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    found = read(Source(dataset="data", split="train"), tmp_path)
    assert list(found.inputs) == ["a", "b"]
    with pytest.raises(InputError, match="expected a configuration and split that it has; got Unknown split"):
        read(Source(dataset="data", split="dev"), tmp_path)


def test_without_a_network_a_name_is_refused_in_one_line(tmp_path, monkeypatch):
    def closed(*arguments, **named):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", closed)
    with pytest.raises(
        InputError, match=r"data set glue: expected a data set in the cache, .*name a folder of save_to"
    ) as found:
        read(Source(dataset="glue", config="sst2", split="train"), tmp_path)
    assert "\n" not in str(found.value)


def test_a_damaged_folder_is_refused(tmp_path):
    table(3).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(InputError, match="data set saved: expected"):
        read(Source(path="saved"), tmp_path)
    assert hub.saved(tmp_path / "saved")
