"""What is counted on paper is what several processes send and read; both ways of the benchmark learn the same λ."""

import functools
import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer

from bounds.types import InputError
from diagnostics.benchmark import processes
from diagnostics.benchmark.processes import Traffic
from merging.execution import Execution
from merging.learned import LearnedSettings, init, prepare, update
from merging.suites import toy
from tests.joined import together

build = functools.cache(toy.build)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_what_is_counted_on_paper_is_sent_and_read(size, sharded):
    suite = build(overlap=0.5, dtype=torch.float32)
    vectors = suite.task_vectors
    weights = sum(value.numel() for value in vectors.base.values())
    if size == 1:
        counted = Traffic.of(weights, 3, 2, 4, 1, sharded=sharded)
        assert counted == Traffic(sent=0, read=2 * 3 * weights * 4, kept=3 * weights * 4)
        return

    def work(joined):
        settings = LearnedSettings(perturbation="none", batch=2, examples=4)
        problem = prepare(vectors, suite.tasks, settings, Execution(processes=joined, sharded=sharded))
        sent = update(problem, init(problem)).history["bytes_sent"]
        own = vectors if problem.shard is None else problem.shard.vectors
        return sent, 0 if own is None else sum(tensor.nbytes for tensor in own.stacked.values())

    found = together(work, size)
    counted = Traffic.of(weights, 3, 2, 4, size, sharded=sharded)
    assert [sent for sent, _ in found] == [[counted.sent]] * size
    assert max(kept for _, kept in found) == counted.kept == counted.read / 2


def test_a_plan_adds_up_reading_sending_and_passes(monkeypatch, capsys):
    """With P = 10^9 numbers of 2 bytes and T = 10, 40 GB are read alone and by 4 processes 10 GB; 6 GB are sent."""
    monkeypatch.setattr(processes, "tower_shapes", lambda model: {"weight": torch.Size([10**9])})
    processes.plan(read_rate=10, network_rate=2, example_seconds=0.5, tasks=10, sizes=(1, 4), batch=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "whole" in line or "by parts" in line]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert [row[3:] for row in rows] == [
        ["40.00", "20.00", "4.000", "0.000", "10.000", "14.000", "1.0"],
        ["40.00", "20.00", "4.000", "0.000", "2.500", "6.500", "2.2"],
        ["10.00", "5.00", "1.000", "3.000", "2.500", "6.500", "2.2"],
    ]


@pytest.mark.parametrize("wrong", ["read_rate", "network_rate", "example_seconds"])
def test_a_plan_refuses_rates_that_are_none(wrong):
    rates: dict[str, Any] = {"read_rate": 1.0, "network_rate": 1.0, "example_seconds": 1.0}
    with pytest.raises(InputError, match=f"{wrong}: expected a positive number"):
        processes.plan(**{**rates, wrong: 0.0})


def test_both_ways_take_the_same_step_and_the_parts_read_a_quarter(monkeypatch, tmp_path):
    def tower(model):
        return VisionTransformer(image_size=8, patch_size=4, width=8, layers=2, heads=2, mlp_ratio=2.0, output_dim=4)

    monkeypatch.setattr(processes, "tower", tower)

    def work(joined):
        monkeypatch.setattr(processes, "processes", lambda: nullcontext(joined))
        processes.measure("tiny", tasks=2, batch=2, folder=tmp_path, json_out=str(tmp_path / "cases.json"))

    assert together(work, 4) == [None] * 4
    whole, parts = json.loads((tmp_path / "cases.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["cases.json"]
    assert (whole["sharded"], parts["sharded"]) == (False, True)
    assert max(abs(a - b) for a, b in zip(whole["coefficients"], parts["coefficients"], strict=True)) < 1e-6
    assert whole["bytes_read"] / 4 <= parts["bytes_read"] < whole["bytes_read"] / 3.9
    assert parts["bytes_on_the_way"] > 0.9 * parts["bytes_sent"] > 10 * whole["bytes_sent"]
