"""The roofline's bytes and operations are counted by hand; every map is measured."""

import json

import pytest
import torch
from open_clip.transformer import VisionTransformer

from diagnostics.benchmark import stream
from diagnostics.benchmark.__main__ import main
from merging import TaskVectors, contract, merged


@pytest.fixture
def entries(monkeypatch):
    """Number of entries of a narrow tower in place of open_clip's; a short stream."""
    torch.manual_seed(0)
    module = VisionTransformer(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2.0, output_dim=8)
    monkeypatch.setattr(stream, "tower", lambda _: module)
    monkeypatch.setattr(stream, "STREAM", 2**12)
    return sum(value.numel() for value in module.parameters())


def test_bytes_and_operations(entries, capsys):
    assert main(["stream", "--tasks", "3", "--repeats", "2", "--json-out", "-"]) == 0
    flows = {(flow["storage"], flow["what"]): flow for flow in json.loads(capsys.readouterr().out)}
    for storage, size in (("float32", 4), ("bfloat16", 2)):
        assert flows[storage, "add up"]["bytes"] == 4 * 2**12
        assert flows[storage, "add up"]["share"] == 1
        assert flows[storage, "copy"]["bytes"] == 8 * 2**12
        assert flows[storage, "merged"]["bytes"] == (3 * size + 2 * 4) * entries  # θ_0 is read, θ is written
        assert flows[storage, "contract"]["bytes"] == (3 * size + 4) * entries  # the gradient is read
        assert all(flows[storage, what]["operations"] == 2 * 3 * entries for what in ("merged", "contract"))
    assert all(flow["seconds"] > 0 for flow in flows.values())


def test_the_maps_that_are_timed_are_those_of_a_merge(entries, monkeypatch, capsys):
    """One call to warm up and one a repetition, of the public maps and on all the task vectors."""
    calls = []

    def seen(function):
        def call(vectors: TaskVectors, *rest, **named):
            calls.append((function.__name__, sum(value.numel() for value in vectors.stacked.values())))
            return function(vectors, *rest, **named)

        return call

    monkeypatch.setattr(stream, "merged", seen(merged))
    monkeypatch.setattr(stream, "contract", seen(contract))
    assert main(["stream", "--tasks", "2", "--storages", "float32", "--repeats", "2"]) == 0
    assert calls == [("merged", 2 * entries), ("contract", 2 * entries)] * 3
    assert "of the stream" in capsys.readouterr().out.replace("\n", " ")
