"""Commands from files to an exported folder are measured, and what they exported is the experts' mean."""

import json
import sys
from pathlib import Path

import pytest

from diagnostics.benchmark import files
from diagnostics.benchmark.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
PEER = """\
import json, pathlib, sys
from safetensors.torch import load_file, save_file
config = json.loads(pathlib.Path(sys.argv[1]).read_text())
assert config["merge_method"] == "linear"
assert all(model["parameters"] == {"weight": 1.0} for model in config["models"])
experts = [load_file(pathlib.Path(model["model"]) / "model.safetensors") for model in config["models"]]
experts = experts[:USED]
out = pathlib.Path(sys.argv[2])
out.mkdir()
save_file({name: sum(e[name] for e in experts) / len(experts) for name in experts[0]}, out / "model.safetensors")
"""
"""Stands in for mergekit: a module of its name that averages (the first USED experts alone, if it is wrong)."""
SMALL = ["files", "--tasks", "2", "--width", "64", "--layers", "1"]


@pytest.fixture
def peer(tmp_path, monkeypatch):
    def write(used):
        place = tmp_path / "peer" / "mergekit" / "scripts"
        place.mkdir(parents=True)
        (place / "run_yaml.py").write_text(PEER.replace("USED", used))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'peer'}:{ROOT}")
        return ["--mergekit", sys.executable, "--folder", str(tmp_path)]

    return write


def test_steps_their_sum_and_a_peer(peer, tmp_path, capsys):
    out = tmp_path / "cases.json"
    assert main([*SMALL, *peer("None"), "--json-out", str(out)]) == 0
    merge, export, ours, other = json.loads(out.read_text())
    ways = [case["way"] for case in (merge, export, ours, other)]
    assert ways == ["mergebound merge", "mergebound export", "mergebound", "mergekit linear"]
    assert ours["wall"] == merge["wall"] + export["wall"]
    assert ours["peak_bytes"] == max(merge["peak_bytes"], export["peak_bytes"])
    for case in (merge, export, other):
        assert case["wall"] > 0
        assert case["cpu"] > 0
        assert 10**7 < case["private_bytes"] < case["peak_bytes"]
    assert ours["off"] < 1e-6
    assert other["off"] < 1e-6
    assert 0.9 < ours["exported_bytes"] / other["exported_bytes"] < 2, "a small text tower is exported with ours"
    shown = capsys.readouterr().out
    assert "2 experts, 1 layers of width 64, 1 threads" in shown
    assert not list(tmp_path.glob("mergebound.*")), "what was made is removed"


@pytest.fixture
def only_the_peer(monkeypatch):
    monkeypatch.setattr(
        files, "_ways", lambda *given, ways=files._ways: {"mergekit linear": ways(*given)["mergekit linear"]}
    )


def test_a_peer_that_averages_something_else_is_seen(peer, capsys, only_the_peer):
    assert main([*SMALL, *peer("1"), "--json-out", "-"]) == 0
    (other,) = json.loads(capsys.readouterr().out)
    assert other["off"] > 1e-4


def test_a_command_that_fails_is_told(peer, tmp_path, capsys, only_the_peer):
    assert main([*SMALL, *peer("None.x")]) == 2
    assert "mergekit linear: expected status 0; got 1: AttributeError" in capsys.readouterr().err
    assert main([*SMALL, "--fusionbench", str(tmp_path / "none")]) == 2
    assert "--fusionbench: expected a Python that has it; got" in capsys.readouterr().err
    assert main(["files", "--tasks", "1"]) == 2
    assert "tasks: expected at least 2; got 1" in capsys.readouterr().err
