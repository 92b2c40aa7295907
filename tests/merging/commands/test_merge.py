"""The command of a merge: every row that takes ``--device`` on a second device, where a tensor left behind raises."""

from typing import Any

import pytest

from merging import METHODS, merge
from merging.artifact import load
from merging.commands.merge import main
from merging.execution import Execution
from merging.suites import toy
from tests.elsewhere import elsewhere
from tests.tolerances import assert_near

EXECUTING = [name for name, row in METHODS.items() if row.executes]
VARIANTS = [*EXECUTING, "samerging --granularity block --average ema", "samerging --perturbation weights"]


@pytest.mark.parametrize("method", VARIANTS)
def test_a_row_on_another_device_merges_the_same(method, tmp_path, capsys):
    arguments = ["--method", *method.split(), "--suite", "toy", "--steps", "3", "--examples", "10", "--batch", "4"]
    here, there = tmp_path / "here.pt", tmp_path / "there.pt"
    assert main([*arguments, "--out", str(here)]) == 0
    table = capsys.readouterr().out.split(str(here))[0]
    with elsewhere() as device:
        assert main([*arguments, "--out", str(there), "--device", device, "--checkpoint-every", "2"]) == 0
    assert capsys.readouterr().out.split(str(there))[0] == table
    expected, found = load(here), load(there)
    for name, value in expected.merged.items():
        assert_near(found.merged[name], value)
    assert (found.coefficients is None) == (expected.coefficients is None)
    if found.coefficients is not None and expected.coefficients is not None:
        assert_near(found.coefficients, expected.coefficients)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.pt", "there.pt"]


def test_a_merge_that_stopped_here_goes_on_there(tmp_path):
    settings: dict[str, Any] = {"examples": 10, "batch": 4}
    out = tmp_path / "out.pt"
    suite = toy.build()
    expected = merge("samerging", suite, steps=6, **settings).coefficients
    stopped = Execution(checkpoint=out.with_name("out.pt.checkpoint"), every=2)
    merge("samerging", suite, steps=4, execution=stopped, **settings)
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    with elsewhere() as device:
        assert (
            main(["--suite", "toy", "--steps", "6", *options, "--out", str(out), "--resume", "--device", device]) == 0
        )
    found = load(out).coefficients
    assert expected is not None
    assert found is not None
    assert_near(found, expected)
