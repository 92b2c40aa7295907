"""What the benchmarks share."""

import json
import time
from dataclasses import dataclass

import pytest
import torch

from bounds.types import InputError
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


def test_an_own_folder_is_removed_and_one_that_cannot_be_made_is_refused(tmp_path):
    with measuring.own_folder(tmp_path) as place:
        (place / "file").write_text("kept until the end")
        assert place.parent == tmp_path
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(InputError, match="missing: expected a folder"),
        measuring.own_folder(tmp_path / "missing"),
    ):
        pass


@dataclass
class Measured:
    seconds: float


def test_cases_are_told_as_json_beside_the_table_or_in_its_place(tmp_path, capsys):
    assert not measuring.told_as_json([Measured(1.5)], "")
    assert not measuring.told_as_json([Measured(1.5)], str(tmp_path / "cases.json"))
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "cases.json").read_text()) == [{"seconds": 1.5}]
    assert measuring.told_as_json([Measured(1.5)], "-")
    assert json.loads(capsys.readouterr().out) == [{"seconds": 1.5}]
