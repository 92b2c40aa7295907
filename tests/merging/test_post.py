"""Laws of every post-processing of the table, and of what merge() makes of them."""

import dataclasses
import math
import typing
from types import MappingProxyType

import pytest
import torch

from bounds.types import InputError, Sample
from merging import TaskVectors, merge, merged
from merging.artifact import load, save
from merging.methods import POST_PROCESSINGS
from merging.rows import VALIDATION, PostProcessing
from merging.selection import Selection
from merging.suites import toy
from merging.task import SPLITS
from tests.laws import world
from tests.tolerances import assert_near

GIVEN = {"lines": ":rise=0.5"}
"""Settings with which a post-processing chooses nothing on labels."""
SINGLE = {"lines": ":low=1,rise=0"}
"""Settings with which it leaves a single expert alone, where the defaults do not."""
ROWS = {"task_arithmetic": {"scale": 0.4}, "ties": {"scale": 0.5}, "regmean": {"examples": 10}}


def flat(params):
    return torch.cat([value.flatten() for value in params.values()])


def assert_same(got, expected):
    assert list(got) == list(expected)
    assert_near(flat(got), flat(expected))


def zero_update(name):
    """Where nothing was changed, nothing changes, with whatever it chooses itself."""
    suite = world()
    found = merge(f"task_arithmetic:scale=0+{name}", suite)
    assert_same(found.merged, suite.task_vectors.base)


def single_expert(name):
    """The expert of a single task stays."""
    suite = world()
    tv = suite.task_vectors
    one = TaskVectors(tv.base, tv.deltas[:1], tv.names[:1])
    found = merge(f"task_arithmetic:scale=1+{name}{SINGLE.get(name, '')}", one, suite.tasks[:1])
    assert_same(found.merged, one.expert(0))


def order(name):
    """Permuting the tasks changes nothing."""
    suite = world()
    tv = suite.task_vectors
    turned = TaskVectors(tv.base, [tv.deltas[i] for i in (1, 2, 0)], [tv.names[i] for i in (1, 2, 0)])
    for row, settings in ROWS.items():
        text = f"{row}+{name}{GIVEN.get(name, '')}"
        expected = merge(text, tv, suite.tasks, **settings)
        found = merge(text, turned, [suite.tasks[i] for i in (1, 2, 0)], **settings)
        assert_same(found.merged, expected.merged)


def own_coefficients(name):
    """Coefficients, where there are any, make the very weights of the task vectors."""
    suite = world()
    found = merge(f"task_arithmetic:scale=0.4+{name}{GIVEN.get(name, '')}", suite)
    if found.coefficients is not None:
        assert_same(merged(suite.task_vectors, found.coefficients, found.blocks), found.merged)


def sees_only_its_needs(name):
    """Splits that neither the row nor it needs change nothing, and the artifact names those that were handed over."""
    suite = world()
    for text in (name, f"{name}{GIVEN.get(name, '')}"):
        needs = POST_PROCESSINGS[name].needs_of(POST_PROCESSINGS[name].settings(**_given(text)))
        hidden = [
            dataclasses.replace(t, **{s: _noise(getattr(t, s)) for s in SPLITS if s not in needs}) for t in suite.tasks
        ]
        first, second = (merge(f"average+{text}", suite.task_vectors, tasks) for tasks in (suite.tasks, hidden))
        assert torch.equal(flat(first.merged), flat(second.merged))
        assert first.used is not None
        assert set(first.used) == needs
        assert (first.used.get("validation") or 0) == (20 if "validation" in needs else 0)


def half_precision(name):
    """Experts in bfloat16 give finite weights in float32."""
    tv = world(torch.float32).task_vectors
    base = {key: value.bfloat16() for key, value in tv.base.items()}
    experts = {t: {n: v.bfloat16() for n, v in tv.expert(i).items()} for i, t in enumerate(tv.names)}
    found = merge(f"average+{name}{GIVEN.get(name, '')}", TaskVectors.from_experts(base, experts)).merged
    assert all(value.dtype == torch.float32 for value in found.values())
    assert bool(torch.isfinite(flat(found)).all())


def refuses(name):
    """Numbers that are none are refused in one line."""
    settings = POST_PROCESSINGS[name].settings
    for field, hint in typing.get_type_hints(settings).items():
        if float in {hint, *typing.get_args(hint)}:
            for bad in (math.nan, math.inf):
                assert _refused(lambda f=field, b=bad: settings(**{f: b})), f"{field} = {bad} is accepted"


def _refused(call):
    try:
        call()
    except InputError as error:
        return "\n" not in str(error)
    return False


def _given(text):
    return {part.partition("=")[0]: float(part.partition("=")[2]) for part in text.partition(":")[2].split(",") if part}


def _noise(sample):
    inputs = torch.full_like(sample.inputs, torch.nan)
    return Sample(inputs, None if sample.labels is None else torch.zeros_like(sample.labels))


LAWS = (zero_update, single_expert, order, own_coefficients, sees_only_its_needs, half_precision, refuses)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", POST_PROCESSINGS)
def test_law(name, law):
    law(name)


@pytest.mark.parametrize("name", POST_PROCESSINGS)
def test_rows_are_complete(name):
    row = POST_PROCESSINGS[name]
    assert row.paper
    assert row.cost
    assert row.needs_text
    assert row.settings.__doc__


@dataclasses.dataclass(frozen=True)
class Loose:
    floor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Claiming(Loose):
    needs = VALIDATION


def _add(found, tv, value):
    return dataclasses.replace(found, params={name: tensor + value for name, tensor in found.params.items()})


def _towards_first(found, tv, tasks, settings, progress):
    first = tv.expert(0)
    return dataclasses.replace(found, params={n: 0.9 * v + 0.1 * first[n] for n, v in found.params.items()})


@pytest.mark.parametrize(
    ("law", "build", "settings"),
    [
        (zero_update, lambda m, tv, tasks, s, p: _add(m, tv, 0.1), Loose),
        (single_expert, lambda m, tv, tasks, s, p: _add(m, tv, 0.1), Loose),
        (order, _towards_first, Loose),
        (own_coefficients, lambda m, tv, tasks, s, p: _add(m, tv, 0.1), Loose),
        (sees_only_its_needs, lambda m, tv, tasks, s, p: _add(m, tv, float(tasks[0].test.inputs.sum())), Loose),
        (sees_only_its_needs, lambda m, tv, tasks, s, p: m, Claiming),
        (half_precision, lambda m, tv, tasks, s, p: _add(m, tv, math.nan), Loose),
        (refuses, lambda m, tv, tasks, s, p: m, Loose),
    ],
)
def test_a_wrong_one_breaks_the_law(law, build, settings, monkeypatch):
    wrong = PostProcessing(build=build, settings=settings, paper="none")
    monkeypatch.setitem(POST_PROCESSINGS, "wrong", wrong)
    with pytest.raises((AssertionError, InputError)):
        law("wrong")


def test_numbers_of_candidates_multiply_and_an_unknown_one_stays_unknown(monkeypatch):
    suite = toy.build(overlap=0.6)
    used = {text: merge(text, suite).used for text in ("task_arithmetic+lines", "task_arithmetic+svc", "average+svc")}
    assert used["task_arithmetic+lines"] == {"validation": 400}
    assert used["task_arithmetic+svc"] == {"validation": 20}
    assert used["average+svc"] == {}
    silent = PostProcessing(
        build=lambda m, *_: dataclasses.replace(m, candidates=None), settings=Claiming, paper="none"
    )
    monkeypatch.setitem(POST_PROCESSINGS, "silent", silent)
    for text in ("average+silent", "task_arithmetic+silent", "average+silent+lines"):
        assert merge(text, suite).used == {"validation": None}, "how many it looked at is not known"


def test_the_artifact_says_what_followed(tmp_path):
    made = merge("task_arithmetic:scale=0.4+svc:floor=1+lines:rise=0.5", world())
    assert (made.method, made.label) == ("task_arithmetic", "task_arithmetic+svc+lines")
    assert made.then == {"svc": {"floor": 1.0}, "lines": {"low": None, "rise": 0.5}}
    assert made.all_settings == {"scale": 0.4, "svc.floor": 1.0, "lines.low": None, "lines.rise": 0.5}
    save(made, tmp_path / "out.pt")
    assert load(tmp_path / "out.pt").then == made.then


def test_one_after_the_other_in_the_order_that_is_written():
    suite = world()
    first, second = (
        merge(f"task_arithmetic:scale=1+{t}", suite).merged for t in ("svc+lines:rise=1", "lines:rise=1+svc")
    )
    assert not torch.allclose(flat(first), flat(second))  # fmt: skip


def test_what_a_selection_keeps_is_not_touched():
    suite = world()
    for text in ("svc", "lines:low=0.5,rise=0.5"):
        found = merge(f"task_arithmetic:scale=1+{text}", suite, selection=Selection(excluding=("second.*",)))
        assert torch.equal(found.merged["second.weight"], suite.task_vectors.base["second.weight"])
        whole = merge(f"task_arithmetic:scale=1+{text}", suite)
        assert_near(found.merged["first.weight"], whole.merged["first.weight"])


def test_a_setting_is_given_once():
    assert merge("ties:density=0.3", world(), scale=0.5).settings["density"] == 0.3
    with pytest.raises(InputError, match="setting scale of ties: expected one value"):
        merge("ties:scale=1+svc", world(), scale=0.5)


def test_the_table_is_found_by_its_files():
    assert list(POST_PROCESSINGS) == ["lines", "svc"]
    assert not isinstance(POST_PROCESSINGS, MappingProxyType)
