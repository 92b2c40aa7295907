"""What the benchmarks share."""

import time

import torch

from diagnostics.benchmark import measuring


def test_a_wait_takes_the_clock_and_no_processor():
    taken = measuring.took(lambda: time.sleep(0.2))
    assert taken.wall >= 0.2
    assert taken.processor < 0.1


def test_generated_task_vectors_are_all_different_and_of_one_size():
    stacked = {"w": torch.zeros(3, 40, 50), "b": torch.zeros(3, 7, dtype=torch.bfloat16)}
    measuring.draw(stacked)
    first, second, third = stacked["w"].view(3, -1)
    assert torch.equal(second, torch.cat([first[-1:], first[:-1]]))
    assert torch.equal(third, torch.cat([first[-2:], first[:-2]]))
    assert 0.9 < float(first.std()) / measuring.SIZE < 1.1
    assert len(stacked["b"].unique(dim=0)) == 3


def test_faster_compares_a_precision_with_float32(monkeypatch):
    times = {torch.bfloat16: 1.0, torch.float32: 2.0, torch.float16: 3.0}
    monkeypatch.setattr(measuring, "seconds", lambda call, repeats: [times[call.args[0].dtype]])
    assert measuring.faster(torch.bfloat16)
    assert not measuring.faster(torch.float16)
    assert not measuring.faster(torch.float32)
