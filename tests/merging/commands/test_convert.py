"""The command that makes safetensors of anything, and runs nothing of it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from merging.commands.convert import main


class Payload:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def encoder(mark: Path) -> Any:
    """A pickled encoder with a text tower, tied weights, and something to run."""
    net: Any = nn.ModuleDict({"model": nn.ModuleDict({"visual": nn.Linear(3, 4), "transformer": nn.Linear(2, 2)})})
    net["model"]["again"] = net["model"]["visual"]
    net.evil = Payload(mark)
    return net


def test_a_pickled_module(tmp_path, capsys):
    net = encoder(tmp_path / "mark")
    torch.save(net, tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), "--to", str(tmp_path / "x.safetensors")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{tmp_path}/x.safetensors: 6 tensors, 38 numbers"
    assert printed[1].startswith(f"{tmp_path}/x.pt would have imported: torch.nn.modules.container.ModuleDict")
    assert "posix.mkdir" in printed[1]
    assert not (tmp_path / "mark").exists()
    state, found = net.state_dict(), load_file(tmp_path / "x.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_part_of_it(tmp_path, capsys):
    torch.save(encoder(tmp_path / "mark"), tmp_path / "x.pt")
    out = tmp_path / "x.safetensors"
    assert main([str(tmp_path / "x.pt"), "--to", str(out), "--prefix", "model.visual."]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{out}: 2 tensors, 16 numbers; 4 left out"
    assert sorted(load_file(out)) == ["bias", "weight"]
    before = out.read_bytes()
    assert main([str(tmp_path / "x.pt"), "--to", str(out), "--prefix", "visual."]) == 2
    assert "names that begin with model.; choose one of them" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "folder", "shards"])
def test_all_that_can_be_read(kind, tmp_path, capsys):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state, source = net.state_dict(), tmp_path / "x.bin"
    if kind in ("zip", "legacy"):
        torch.save(state, source, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "safetensors":
        save_file(state, source)
    else:
        (source := tmp_path / "folder").mkdir()
        save_file({"1.weight": state["1.weight"]}, source / "a.safetensors")
        save_file({n: v for n, v in state.items() if n != "1.weight"}, source / "b.safetensors")
        listed = ", ".join(f'"{n}": "{"a" if n == "1.weight" else "b"}.safetensors"' for n in state)
        (source / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{listed}}}}}')
        source = source / "model.safetensors.index.json" if kind == "shards" else source
    out = tmp_path / "out.safetensors"
    assert main([str(source), "--to", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{source} would have imported: nothing"
    found = load_file(out)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)


def test_overlapping_tensors_are_copied(tmp_path):
    whole = torch.arange(12.0)
    state = {"whole": whole, "part": whole[3:5], "end": whole[6:], "turned": whole.reshape(3, 4).T, "none": whole[:0]}
    torch.save(state, tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), "--to", str(tmp_path / "x.safetensors")]) == 0
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    for arguments, message in (
        ([tmp_path / "x.pt", "--to", tmp_path / "x.pt"], "got the same; rename one"),
        ([tmp_path / "none.pt", "--to", tmp_path / "x.safetensors"], "got nothing there; check the path"),
        ([tmp_path / "x.pt", "--to", tmp_path / "none" / "x.safetensors"], "create the folder first"),
        ([tmp_path / "x.pt", "--to", tmp_path], "got a folder"),
    ):
        assert main(list(map(str, arguments))) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert message in printed.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt"]
