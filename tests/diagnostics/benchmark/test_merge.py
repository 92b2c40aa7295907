"""The step's benchmark: what is paired with what, what is read, in which precision the passes run."""

import json

import pytest
import torch
from open_clip.transformer import VisionTransformer

from diagnostics.benchmark import merge
from diagnostics.benchmark.__main__ import main
from diagnostics.benchmark.measuring import Took

SMALL = ["merge", "--tasks", "3", "--repeats", "1", "--json-out", "-"]


@pytest.fixture
def module(monkeypatch):
    """A tower of one narrow layer in place of open_clip's."""
    torch.manual_seed(0)
    module = VisionTransformer(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2.0, output_dim=8)
    monkeypatch.setattr(merge, "tower", lambda _: module)
    return module


@pytest.fixture
def clock(monkeypatch):
    """Scripted seconds: what ``took`` returns, call by call; what was called is listed."""
    calls = []

    def use(*seconds):
        left = iter(seconds)

        def took(function):
            function()
            value = next(left)
            return Took(value, 2 * value)

        monkeypatch.setattr(merge, "took", took)
        return calls

    return use


def repeat(calls, passes, repeats, seconds=1e9):
    plain, step = (lambda: calls.append("plain")), (lambda: calls.append("step"))
    return merge._repeat(plain, step, passes, merge._Effort(repeats, seconds))


@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_is_paired_with_the_plain_passes_around_it(clock, passes):
    calls = clock(1.0, 5.0, 2.0, 3.0, 7.0, 4.0)
    pairs = repeat(calls, passes, 2)
    assert calls == ["plain", *["plain", "step", "plain"] * 2]  # the first warms up
    assert [step.wall for _, step in pairs] == [5.0, 7.0]
    assert [floor.wall for floor, _ in pairs] == [passes * 1.5, passes * 3.5]
    assert [floor.processor for floor, _ in pairs] == [passes * 3.0, passes * 7.0]


def test_no_repetition_begins_after_its_time_but_one_is_made(clock):
    assert len(repeat(clock(1.0, 1.0, 1.0), 2, 5, seconds=0.0)) == 1


def test_without_a_floor_nothing_is_repeated(clock):
    calls = clock()
    assert repeat(calls, 2, 0) == []
    assert calls == []


@pytest.mark.parametrize(("quick", "half"), [(True, "bfloat16"), (False, "none")])
def test_bytes_passes_and_precision_of_every_case(module, monkeypatch, capsys, quick, half):
    """Passes run in bfloat16 where the processor is quick in it and the task vectors are kept in it; never else."""
    monkeypatch.setattr(merge, "faster", lambda dtype: quick and dtype == torch.bfloat16)
    assert main([*SMALL, "--perturbations", "none", "coefficients"]) == 0
    cases = json.loads(capsys.readouterr().out)
    entries = sum(value.numel() for value in module.parameters())
    for case, size, passes in zip(cases, (4, 4, 2, 2), (1, 2, 1, 2), strict=True):
        assert case["passes"] == passes
        assert case["bytes_read"] == 2 * passes * 3 * entries * size
        assert case["autocast"] == ("none" if case["storage"] == "float32" else half)
        assert case["repeats"] == 1
        assert 0 < case["ratio_lowest"] <= case["ratio"] <= case["ratio_highest"]


def test_a_chosen_precision_is_taken(module, monkeypatch, capsys):
    monkeypatch.setattr(merge, "faster", lambda _: pytest.fail("nothing to find out"))
    wanted = ["--storages", "bfloat16", "--perturbations", "none", "--passes-in", "none"]
    assert main([*SMALL, *wanted]) == 0
    assert json.loads(capsys.readouterr().out)[0]["autocast"] == "none"


def test_the_table_shows_the_range_of_the_ratio(module, capsys):
    assert main(["merge", "--tasks", "2", "--storages", "float32", "--perturbations", "none", "--repeats", "2"]) == 0
    assert "(range)" in capsys.readouterr().out.replace("\n", " ")
