"""Weights from files, shards and folders, as the libraries themselves write them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from transformers import BertConfig, BertModel

from bounds.types import InputError
from merging.checkpoints import read_weights, weight_files

BERT = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=12,
)  # fmt: skip
INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(found, state):
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)


def bin_shards(state, folder: Path) -> None:
    """Write shards as transformers did before it wrote safetensors."""
    names = list(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    listed = {name: file for file, part in parts.items() for name in part}
    (folder / BIN_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def test_what_transformers_saves(tmp_path):
    model: Any = BertModel(BERT)
    model.save_pretrained(tmp_path)
    same(read_weights(tmp_path), model.state_dict())
    same(read_weights(tmp_path / "model.safetensors"), model.state_dict())
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    model.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    same(read_weights(tmp_path / "shards"), model.state_dict())
    same(read_weights(tmp_path / "shards" / INDEX), model.state_dict())
    files = weight_files(tmp_path / "shards")
    assert files[0].name == INDEX
    assert {f.name for f in files[1:]} == {p.name for p in (tmp_path / "shards").glob("*.safetensors")}
    assert len(files) == 3


def test_old_folders_of_transformers(tmp_path):
    state = BertModel(BERT).state_dict()
    bin_shards(state, tmp_path)
    for path in (tmp_path, tmp_path / BIN_INDEX):
        same(read_weights(path), state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert [f.name for f in weight_files(tmp_path)] == ["pytorch_model.bin"]
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    save_file(dict(state), tmp_path / "model.safetensors")
    assert [f.name for f in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_3.pt"])
def test_what_open_clip_saves(name, tmp_path):
    vision: Any = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8}
    text: Any = {"context_length": 5, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    state = open_clip.CLIP(8, vision, text).state_dict()
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    elif name.startswith("epoch"):  # its training loop, under distributed data parallel
        named = {f"module.{key}": value for key, value in state.items()}
        torch.save(
            {"epoch": 3, "name": "x", "state_dict": named, "optimizer": {"state": {}, "param_groups": []}},
            tmp_path / name,
        )
        state = named
    else:
        torch.save(state, tmp_path / name)
    (tmp_path / "open_clip_config.json").write_text("{}")
    same(read_weights(tmp_path), state)


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt", "anything"])
@pytest.mark.parametrize("modern", [True, False])
def test_state_dicts_under_any_name(ending, modern, tmp_path):
    module = net()
    for content in (
        module.state_dict(),
        {"state_dict": module.state_dict(), "epoch": 3},
        {"model": module.state_dict()},
    ):
        torch.save(content, tmp_path / f"x.{ending}", _use_new_zipfile_serialization=modern)
        same(read_weights(tmp_path / f"x.{ending}"), module.state_dict())
    assert read_weights(tmp_path / f"x.{ending}")["1.num_batches_tracked"].dtype == torch.int64


def test_the_content_tells_the_format_not_the_name(tmp_path):
    for width in range(1, 120):  # the length of the header begins as any byte, also as a pickle does
        save_file({"w" * width: torch.ones(2)}, tmp_path / "x.bin")
        assert list(read_weights(tmp_path / "x.bin")) == ["w" * width]
    for width in range(560, 610):
        save_file({"w" * width: torch.ones(1)}, tmp_path / "x.bin")
        if (tmp_path / "x.bin").read_bytes()[:2] == b"\x80\x02":
            assert len(read_weights(tmp_path / "x.bin")) == 1
            return
    pytest.fail("no header of such a length")


def test_tied_weights_of_save_model_come_back_twice(tmp_path):
    module: Any = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    module["b"].weight = module["a"].weight
    save_model(module, str(tmp_path / "x.safetensors"))
    found = read_weights(tmp_path / "x.safetensors")
    same(found, module.state_dict())
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()


CHARGED = """
import sys, torch
from pathlib import Path
from merging.checkpoints import read_weights
def charged():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) // 1024
before = charged()
found = read_weights(Path(sys.argv[1]))
assert sum(value.nbytes for value in found.values()) >= 300 * 2**20
mapped = charged() - before
assert float(found["layer.0.weight"][5, 7]) == 1.0
print(mapped)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's memory counters")
@pytest.mark.parametrize("kind", ["safetensors", "torch", "shards"])
def test_mapping_300_megabytes_charges_none(kind, tmp_path):
    state = {f"layer.{i}.weight": torch.ones(2048, 2560) for i in range(15)}
    path = tmp_path / "x.safetensors"
    if kind == "torch":
        torch.save(state, path := tmp_path / "x.pt")
    elif kind == "safetensors":
        save_file(state, path)
    else:
        bin_shards(state, path := tmp_path)
    run = subprocess.run([sys.executable, "-c", CHARGED, path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 30


def refused(path: Path, match: str):
    with pytest.raises(InputError, match=match) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert "install" not in str(caught.value)


def test_shards_and_names_that_are_missing(tmp_path):
    model: Any = BertModel(BERT)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / INDEX).read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    refused(tmp_path / first, r"got part 1 of \d+; name its folder or its index")
    name = next(name for name, shard in index["weight_map"].items() if shard == first)
    held = read_weights(tmp_path)
    save_file(
        {k: held[k].clone() for k, s in index["weight_map"].items() if s == first and k != name}, tmp_path / "new"
    )
    kept = (tmp_path / first).read_bytes()
    os.replace(tmp_path / "new", tmp_path / first)
    refused(tmp_path, rf"got 1 of them missing: {name} \(in {first}\); copy the shards again")
    (tmp_path / first).unlink()
    refused(tmp_path, rf"got no {first}; copy the missing files beside the index")
    (tmp_path / first).write_bytes(kept)
    for broken in ({}, {"weight_map": {}}, {"weight_map": {"a": "../x.bin"}}, {"weight_map": {"a": 3}}, [], "x"):
        (tmp_path / INDEX).write_text(json.dumps(broken))
        refused(tmp_path, "copy the (index|file) again")
    (tmp_path / INDEX).write_text("{")
    refused(tmp_path, "expected a JSON object")
    (tmp_path / INDEX).unlink()
    refused(tmp_path, r"got shards alone: .*; copy the index")


def test_names_beside_the_index_are_kept(tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(1), "c": torch.ones(3)}, tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"c": "two.safetensors", "a": "one.safetensors"}}))
    found = read_weights(tmp_path)
    assert list(found) == ["c", "a", "b"]
    assert float(found["a"]) == 1.0


FOREIGN = {
    "gguf": (b"GGUF" + bytes(100), "got a GGUF file, whose weights are quantised; use the original weights"),
    "empty": (b"", "got an empty file; copy the file again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "run git lfs pull"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "got HDF5"),
    "text": (b"<html>not found</html>", "got a file beginning with b'<html>not fo'; check the path"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "got an empty zip archive"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_files_of_something_else(name, file, tmp_path):
    content, message = FOREIGN[name]
    (tmp_path / file).write_bytes(content)
    refused(tmp_path / file, message)
    refused(tmp_path, message)


def test_archives_of_something_else(tmp_path):
    import tarfile
    import zipfile

    import numpy as np

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(tmp_path / "x.zip", r"got a zip archive of \['readme.txt'\]")
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    refused(tmp_path / "x.npz", "got arrays of NumPy; save the arrays as tensors")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.zip", "x")
    refused(tmp_path / "x.tar", "got a tar archive")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"\x80\x02}.")
    refused(tmp_path / "script.pt", r"got a TorchScript archive.*torch\.jit\.load")


@pytest.mark.parametrize("file", ["x.safetensors", "x.pt", "legacy.pt"])
def test_cut_files(file, tmp_path):
    state = {"a": torch.ones(100, 10)}
    if file.endswith("safetensors"):
        save_file(state, tmp_path / file)
    else:
        torch.save(state, tmp_path / file, _use_new_zipfile_serialization=file == "x.pt")
    data = (tmp_path / file).read_bytes()
    for count in (9, 30, 200, len(data) - 1):
        (tmp_path / file).write_bytes(data[:count])
        refused(tmp_path / file, "copy the file again")


def test_folders_without_weights(tmp_path):
    refused(tmp_path, "got no files; name the folder that save_pretrained wrote")
    refused(tmp_path / "none", "got nothing there; check the path")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"got no weights among config\.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(tmp_path, "got a tokenizer without weights; name the folder of the model")
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "model.safetensors").write_bytes(b"x")
    refused(tmp_path, "got weights in its folders: checkpoint-500; name one of them")
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    refused(tmp_path, r"got weights of another library: tf_model\.h5")
    torch.save({}, tmp_path / "optimizer.pt")
    refused(tmp_path, r"got weights of another library")
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, r"got 2 files: a\.pt, b\.safetensors; name the file that is meant")
