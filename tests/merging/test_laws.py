"""Every law holds for every row of the table of methods, or the row says that and why it does not, and it does not."""

import dataclasses

import pytest
import torch

from bounds.types import InputError
from merging import METHODS
from merging.closed_form import uniform
from merging.params import partition
from merging.rows import Merge, Method, NoSettings
from merging.task_vectors import merged
from tests.laws import LAWS


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", METHODS)
def test_law(method, law):
    if law in METHODS[method].breaks:
        with pytest.raises((AssertionError, InputError)):
            LAWS[law](method)
    else:
        LAWS[law](method)


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_complete_and_name_laws_that_exist(method):
    row = METHODS[method]
    assert not set(row.breaks) - set(LAWS)
    assert all(row.breaks.values()), "a reason for each"
    assert row.paper
    assert row.needs_text
    assert row.cost
    assert row.settings.__doc__
    assert row.build.__module__.startswith("merging.")


def _shifted(tv, tasks, settings, progress):
    """Average, but the first task counts double and the result depends on PyTorch's own generator."""
    coefficients = uniform.uniform(tv, 1 / len(tv))
    coefficients[0] *= 2 + 0.01 * torch.rand(())
    return Merge(params=merged(tv, coefficients, partition(tv.base, "task")), coefficients=None)


def _holding_nan(tv, tasks, settings, progress):
    return Merge(params={name: (value / 0).bfloat16() for name, value in tv.base.items()})


def _peeking(tv, tasks, settings, progress):
    """Average, scaled by what the row does not say it needs."""
    scale = float(tasks[0].validation.labels.double().mean())
    return Merge(params=merged(tv, uniform.uniform(tv, scale), partition(tv.base, "task")))


def _wrong(build, settings: type = NoSettings, tasks=None):
    return Method(build=build, settings=settings, paper="none", cost="nothing", tasks=tasks)


@dataclasses.dataclass(frozen=True)
class Unchecked:
    scale: float = 1.0
    method: str = "ties"


@pytest.mark.parametrize(
    ("law", "row"),
    [
        ("one task", _wrong(_shifted)),
        ("equal experts", _wrong(_shifted)),
        ("zero task vectors", _wrong(_holding_nan)),
        ("order", _wrong(_shifted)),
        ("deterministic", _wrong(_shifted)),
        ("half precision", _wrong(_holding_nan)),
        ("refuses", _wrong(_shifted, Unchecked)),
        ("refuses", _wrong(_shifted, tasks=2)),
        ("sees only its needs", _wrong(_peeking)),
    ],
)
def test_a_wrong_row_breaks_the_law(law, row, monkeypatch):
    monkeypatch.setitem(METHODS, "wrong", row)
    with pytest.raises(AssertionError):
        LAWS[law]("wrong")


def test_what_is_lost_in_the_file_breaks_the_law(monkeypatch):
    monkeypatch.setattr("tests.laws.save", lambda artifact, path: torch.save(None, path))
    monkeypatch.setattr("tests.laws.load", lambda path: dataclasses.replace(_artifact(), history={}))
    with pytest.raises(AssertionError):
        LAWS["saved whole"]("task_arithmetic")


def _artifact():
    from tests.laws import QUICK, run, world

    return run("average", world().task_vectors, world().tasks, **QUICK)
