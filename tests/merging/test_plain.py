import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jsonschema
import pytest

from bounds.types import Estimate
from diagnostics.plain import from_plain, json_schema, to_plain


@dataclass(frozen=True)
class Inner:
    """An inner one."""

    kind: Literal["a", "b"]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Outer:
    """An outer one."""

    table: Mapping[str, tuple[float, ...]]
    inner: Inner | None
    radius: float | None
    count: int


FULL = Outer({"x": (1.0, 2.5)}, Inner("a", (Estimate(1.0, 0.5, 3, "estimated"),)), None, 4)


def test_back_and_forth():
    plain = json.loads(json.dumps(to_plain(FULL)))
    assert from_plain(Outer, plain) == FULL
    empty = Outer({}, None, 0.5, 0)
    assert from_plain(Outer, to_plain(empty)) == empty


def test_numbers_that_are_not_finite_become_null_and_nan():
    plain = to_plain(Outer({"x": (math.inf,)}, None, None, 0))
    assert plain["table"] == {"x": [None]}
    assert math.isnan(from_plain(Outer, plain).table["x"][0])


@pytest.mark.parametrize("change", [{"count": 1, "more": 2}, {"table": {}}])
def test_missing_and_unknown_fields_are_refused(change):
    with pytest.raises(TypeError):
        from_plain(Outer, {**to_plain(FULL), **change} if "more" in change else change)


@pytest.mark.parametrize(
    ("change", "valid"),
    [({}, True), ({"radius": 1.0}, True), ({"inner": None}, True), ({"count": "4"}, False), ({"more": 1}, False)],
)
def test_the_schema_tells_right_from_wrong(change, valid):
    schema = json_schema(Outer, "title")
    content = {**to_plain(FULL), **change}
    if valid:
        jsonschema.validate(content, schema)
    else:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, schema)


def test_the_schema_knows_literals():
    content = to_plain(FULL)
    content["inner"]["kind"] = "c"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json_schema(Outer, "title"))
