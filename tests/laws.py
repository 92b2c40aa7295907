"""Laws that every row of the table of methods obeys, unless its ``breaks`` names the law and the reason.

A law is a function of the method's name that raises AssertionError where the row does not obey. Rows get them all
without being named here: the settings below are chosen by the names of the settings' fields.
"""

import math
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bounds.types import InputError, Params, Sample
from merging import METHODS, Task, TaskVectors, merge
from merging.artifact import MergeArtifact, load, save
from merging.suites import Suite, toy
from merging.task import SPLITS
from tests.tolerances import assert_near

QUICK: Mapping[str, Any] = {"scale": 0.4, "steps": 2, "examples": 10, "batch": 4}
"""Few steps on some of the 24 calibration examples of the toy world, a new choice of them in every step."""
WHOLE: Mapping[str, Any] = {
    **QUICK,
    "scale": 1.0,
    "init": 1.0,
    "density": 1.0,
    "outliers": 0.0,
    "drop_rate": 0.0,
    "agreement": 1,
    "steps": 1,
    "perturbation": "none",
    "weight_decay": 0.0,
}
"""Field of settings -> the value at which the method keeps each task vector whole, with coefficient 1.

One step: Adam divides a gradient by its own size, so that rounding noise would grow to a visible step within a few.
"""


DRAWN: Mapping[str, Sequence[str]] = {
    "perturbation": ("random", "random-weights", "ggn-trace"),
    "labels": ("sampled",),
}
"""Field of settings -> the values with which the method draws random numbers."""


def chosen(method: str, **values: Any) -> dict[str, Any]:
    """Those of the settings that the method has."""
    return {name: value for name, value in values.items() if name in METHODS[method].settings.__dataclass_fields__}


@lru_cache
def world(dtype: torch.dtype = torch.float64) -> Suite:
    return toy.build(overlap=0.3, dtype=dtype)


def tasks_of(method: str, suite: Suite) -> Suite:
    """The suite with as many tasks as the method merges."""
    tv, size = suite.task_vectors, METHODS[method].tasks or len(suite.tasks)
    return Suite(suite.name, TaskVectors(tv.base, tv.deltas[:size], tv.names[:size]), suite.tasks[:size])


def with_deltas(suite: Suite, deltas: Sequence[Params]) -> TaskVectors:
    return TaskVectors(suite.task_vectors.base, deltas, suite.task_vectors.names[: len(deltas)])


def run(method: str, task_vectors: TaskVectors, tasks: Sequence[Task], **settings: Any) -> MergeArtifact:
    return merge(method, task_vectors, tasks, **chosen(method, **settings))


def assert_same(got: Params, expected: Params) -> None:
    """Compare at the tolerance of float64, relative to the largest weight of the whole model."""
    assert list(got) == list(expected)
    assert [value.shape for value in got.values()] == [value.shape for value in expected.values()]
    left, right = (torch.cat([value.flatten() for value in params.values()]) for params in (got, expected))
    assert_near(left, right)


def one_task(method: str) -> None:
    """One task at coefficient 1 returns its expert."""
    suite = world()
    vectors = with_deltas(suite, suite.task_vectors.deltas[:1])
    assert_same(run(method, vectors, suite.tasks[:1], **WHOLE).merged, vectors.expert(0))


def equal_experts(method: str) -> None:
    """T equal experts return the expert: at coefficient 1 where the row takes means, at 1/T where it takes sums."""
    suite = tasks_of(method, world())
    vectors = with_deltas(suite, [suite.task_vectors.deltas[0]] * len(suite.tasks))
    tasks = [replace(suite.tasks[0], name=name) for name in vectors.names]
    share = 1 / len(tasks)
    try:
        assert_same(run(method, vectors, tasks, **WHOLE).merged, vectors.expert(0))
    except AssertionError:
        assert_same(run(method, vectors, tasks, **{**WHOLE, "scale": share, "init": share}).merged, vectors.expert(0))


def zero_task_vectors(method: str) -> None:
    """Task vectors that are exactly 0 return θ_0, with the method's own choice of scale."""
    suite = tasks_of(method, world())
    zero = {name: torch.zeros_like(value) for name, value in suite.task_vectors.base.items()}
    settings = {**QUICK, "scale": None} if _may_be_none(method, "scale") else QUICK
    found = run(method, with_deltas(suite, [zero] * len(suite.tasks)), suite.tasks, **settings)
    assert_same(found.merged, suite.task_vectors.base)


def order(method: str) -> None:
    """Permuting the tasks permutes the coefficients and leaves the merge as it is, also where examples are chosen.

    And where something is drawn: every one of ``DRAWN`` that the row has, one after the other.
    """
    suite = tasks_of(method, world())
    tv = suite.task_vectors
    turned = [*range(1, len(tv)), 0]
    permuted = TaskVectors(tv.base, [tv.deltas[i] for i in turned], [tv.names[i] for i in turned])
    drawn = [{name: value} for name, values in DRAWN.items() if chosen(method, **{name: 0}) for value in values]
    for settings in ({}, *drawn):
        expected = run(method, tv, suite.tasks, **QUICK, **settings)
        found = run(method, permuted, [suite.tasks[i] for i in turned], **QUICK, **settings)
        assert_same(found.merged, expected.merged)
        if expected.coefficients is not None:
            assert found.coefficients is not None
            assert_near(found.coefficients, expected.coefficients[turned])


def deterministic(method: str) -> None:
    """The same settings and seed give the same bits, whatever the state of PyTorch's own generator."""
    suite = tasks_of(method, world())
    first = run(method, suite.task_vectors, suite.tasks, **QUICK)
    torch.rand(7)
    second = run(method, suite.task_vectors, suite.tasks, **QUICK)
    assert all(torch.equal(first.merged[name], value) for name, value in second.merged.items())


def saved_whole(method: str) -> None:
    """Saving and loading the artifact changes nothing."""
    suite = tasks_of(method, world())
    made = run(method, suite.task_vectors, suite.tasks, **QUICK)
    with tempfile.TemporaryDirectory() as folder:
        save(made, Path(folder) / "out.pt")
        read = load(Path(folder) / "out.pt")
    assert all(torch.equal(read.merged[name], value) for name, value in made.merged.items())
    assert (read.method, read.settings, read.history) == (method, made.settings, made.history)


def half_precision(method: str) -> None:
    """Experts in bfloat16, or task vectors kept in it, give finite weights, in float32 at least."""
    suite = tasks_of(method, world(torch.float32))
    tv = suite.task_vectors
    base = {name: value.bfloat16() for name, value in tv.base.items()}
    experts = {t: {n: v.bfloat16() for n, v in tv.expert(i).items()} for i, t in enumerate(tv.names)}
    stored = {name: value.bfloat16() for name, value in tv.stacked.items()}
    for given in (TaskVectors.from_experts(base, experts), TaskVectors.from_stacked(tv.base, stored, tv.names)):
        found = run(method, given, suite.tasks, **QUICK).merged
        assert list(found) == list(base)
        for name, value in found.items():
            assert value.dtype == torch.float32, f"{name} is {value.dtype}"
            assert value.shape == base[name].shape
            assert bool(torch.isfinite(value).all()), f"{name} is not finite"


def refuses(method: str) -> None:
    """One clear line for settings out of range, a number of tasks it cannot merge, tasks in another order."""
    row = METHODS[method]
    for name, hint in typing.get_type_hints(row.settings).items():
        for bad in _out_of_range(name, hint):
            assert _refused(lambda n=name, b=bad: row.settings(**{n: b})), f"{name} = {bad!r} is accepted"
    suite = tasks_of(method, world())
    if row.tasks is not None:
        vectors = with_deltas(world(), world().task_vectors.deltas[:1])
        assert _refused(lambda: run(method, vectors, suite.tasks[:1], **QUICK)), "one task is accepted"
    for wrong in (suite.tasks[::-1], suite.tasks[:-1]):
        assert _refused(lambda w=wrong: run(method, suite.task_vectors, w, **QUICK)), "tasks of others are accepted"


def sees_only_its_needs(method: str) -> None:
    """Splits that the row does not need with its settings change nothing, whatever they hold; the artifact says so.

    With a scale and, where the row can choose one, without.
    """
    suite = tasks_of(method, world())
    for scale in (0.4, None) if _may_be_none(method, "scale") else (0.4,):
        settings = {**QUICK, "scale": scale}
        needs = METHODS[method].needs_of(METHODS[method].settings(**chosen(method, **settings)))
        others = [replace(t, **{s: _noise(getattr(t, s)) for s in SPLITS if s not in needs}) for t in suite.tasks]
        try:
            first, second = (run(method, suite.task_vectors, tasks, **settings) for tasks in (suite.tasks, others))
        except InputError as error:
            raise AssertionError(f"asks for more than it needs: {error}") from error
        assert all(torch.equal(first.merged[name], value) for name, value in second.merged.items())
        assert first.used is not None
        assert set(first.used) == needs
        looked = len(first.history.get("validation_accuracy", ()))
        tried = first.used.get("validation") or 0  # what could have been looked at, all of which a certificate pays for
        assert tried >= looked
        assert (tried > 0) == (looked > 0)


def _noise(sample: Sample) -> Sample:
    assert isinstance(sample.inputs, torch.Tensor)
    inputs = torch.full_like(sample.inputs, torch.nan)
    return Sample(inputs, None if sample.labels is None else torch.zeros_like(sample.labels))


def _out_of_range(name: str, hint: Any) -> Sequence[object]:
    kinds = {hint, *typing.get_args(hint)}
    if float in kinds:
        return math.nan, math.inf
    if int in kinds and name != "seed":
        return (-1,)
    return ("nonsense",) if typing.get_origin(hint) is typing.Literal or hint is str else ()


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except InputError as error:
        return "\n" not in str(error) and "expected" in str(error)
    return False


def _may_be_none(method: str, field: str) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(METHODS[method].settings).get(field))


LAWS: Mapping[str, Callable[[str], None]] = {
    "one task": one_task,
    "equal experts": equal_experts,
    "zero task vectors": zero_task_vectors,
    "order": order,
    "deterministic": deterministic,
    "saved whole": saved_whole,
    "half precision": half_precision,
    "refuses": refuses,
    "sees only its needs": sees_only_its_needs,
}
"""Name (a key of ``Method.breaks``) -> law."""
