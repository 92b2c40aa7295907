"""Data classes as plain JSON values, back again, and as a JSON Schema: the format of a file is its data class.

pydantic does the work. On top of it, a number that is not finite is null in JSON and nan when it is read; every field
must be there and no other; numbers, text and truth values are never taken for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import SchemaValidator, core_schema, to_jsonable_python

from bounds.types import refuse

Data = TypeVar("Data")
AGAIN = "make it again"


def to_plain(value: Any) -> Any:
    """Return a data class (or a container of them) as JSON values; a number that is not finite becomes null.

    Raises:
        pydantic_core.PydanticSerializationError: something else than data classes, containers, paths, numbers and text.
    """
    return to_jsonable_python(value, inf_nan_mode="null", fallback=_mapping)


def _mapping(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not plain")


def from_plain(kind: type[Data], value: Any, what: str = "", cure: str = AGAIN) -> Data:
    """Rebuild ``kind`` from what :func:`to_plain` returned; null becomes nan where a number is due.

    Raises:
        InputError: the value does not have the shape of ``kind``; the message names the place.
    """
    return _checked(kind, value, what or kind.__name__, cure, nulls=True)


def checked(kind: type[Data], value: Any, what: str = "", cure: str = AGAIN) -> Data:
    """Build ``kind`` from a mapping of its fields, which may be tensors; null is no number here.

    Raises:
        InputError: as :func:`from_plain`.
    """
    return _checked(kind, value, what or kind.__name__, cure, nulls=False)


def given(kind: type[Data], value: Any, where: Callable[[Sequence[str | int]], str], cure: str) -> Data:
    """Build ``kind`` from what a user wrote: fields with a default may be left out.

    Args:
        kind: a data class.
        value: a mapping of its fields.
        where: (names and positions that lead to a place in the value) -> how an error calls it.
        cure: the end of an error.

    Raises:
        InputError: as :func:`from_plain`; what the class itself refuses.
    """
    return _checked(kind, value, where, cure, nulls=False, defaults=True)


def _checked(
    kind: type[Data],
    value: Any,
    what: str | Callable[[Sequence[str | int]], str],
    cure: str,
    *,
    nulls: bool,
    defaults: bool = False,
) -> Data:
    try:
        return _validator(kind, nulls, defaults).validate_python((value,))[0]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        steps = first["loc"][1:]
        place = ".".join(map(str, steps))
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            expected = f"only {', '.join(_known(kind, steps)) or 'known names'}"
        got = "nothing" if first["type"].startswith("missing") else _shown(first["input"])
        if callable(what):
            refuse(what(steps), expected=expected, got=got, cure=cure)
        refuse(f"{what}, {place}" if place else what, expected=expected, got=got, cure=cure)


def _known(kind: Any, steps: Sequence[str | int]) -> list[str]:
    """Return the fields of ``kind``, where the last step is one of its own that it does not have."""
    return [f.name for f in fields(kind)] if len(steps) == 1 and is_dataclass(kind) else []


def _shown(value: Any) -> str:
    """Return a value in a few words: a tensor or a table would fill the screen."""
    simple = value is None or isinstance(value, (bool, int, float, str))
    return repr(value)[:60] if simple else f"a {type(value).__name__}"


@lru_cache
def _validator(kind: Any, nulls: bool, defaults: bool = False) -> SchemaValidator:
    """Return the validator of (kind,): inside a tuple, classes of other libraries need no setting in ``kind``."""
    wrapped: Any = tuple.__class_getitem__(kind)
    adapter = TypeAdapter(wrapped, config=ConfigDict(arbitrary_types_allowed=True))
    return SchemaValidator(_exact(adapter.core_schema, nulls, defaults))


def _exact(schema: Any, nulls: bool, defaults: bool = False) -> Any:
    """Return pydantic's description of a type with this project's rules (see the head of this file)."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_exact(part, nulls, defaults) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "default" and not defaults:  # a field with a default is written too, so it must be there
        return _exact(schema["schema"], nulls, defaults)
    if kind in ("int", "float", "str", "bool"):
        exact: Any = {**schema, "strict": True}
        return core_schema.no_info_before_validator_function(_number, exact) if kind == "float" and nulls else exact
    skipped = ("serialization", "metadata", "config", *(("default",) if defaults else ()))
    result = {name: part if name in skipped else _exact(part, nulls, defaults) for name, part in schema.items()}
    return {**result, "extra_behavior": "forbid"} if kind == "dataclass-args" else result


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a data class; a class is described by its doc string."""
    body = _Schema(ref_template="#/$defs/{model}").generate(_exact(TypeAdapter(kind).core_schema, nulls=False))
    definitions = body.pop("$defs", {})
    return {
        "$schema": _Schema.schema_dialect,
        **body,
        "title": title,
        "$defs": dict(sorted(definitions.items())),
    }


class _Schema(GenerateJsonSchema):
    """pydantic's generator, for numbers that may be null, without a title for every field."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"type": ["number", "null"]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        described = super().dict_schema(schema)
        if described.get("additionalProperties") is True:  # what is meant without it: releases of pydantic differ
            del described["additionalProperties"]
        return described

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        described = super().dataclass_schema(schema)
        described.pop("title", None)
        description = " ".join((schema["cls"].__doc__ or "").split())
        return {**described, "description": description, "additionalProperties": False}
