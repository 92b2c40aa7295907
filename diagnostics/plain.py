"""Data classes as plain JSON values, back again, and as a JSON Schema: the report's format is its data classes."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Data = TypeVar("Data")


def to_plain(value: Any) -> Any:
    """Return a data class (or a container of them) as JSON values; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(kind: type[Data], value: Any) -> Data:
    """Rebuild ``kind`` from what :func:`to_plain` returned; null becomes nan where a number is due.

    Raises:
        TypeError, KeyError: the value does not have the shape of ``kind``.
    """
    return _build(kind, value)


def _build(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        if not isinstance(value, dict) or set(value) != known:
            raise TypeError(f"{kind.__name__}: fields {sorted(known ^ set(value))} are missing or unknown")
        return typing.cast(Any, kind)(**{name: _build(hints[name], value[name]) for name in known})
    if _optional(kind):
        return None if value is None else _build(_optional(kind), value)
    if origin in (tuple, list, Sequence):
        return tuple(_build(arguments[0], v) for v in value)
    if origin in (dict, Mapping):
        return {k: _build(arguments[1], v) for k, v in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    return value


def _optional(kind: Any) -> Any:
    """Return X for X | None, else None."""
    if get_origin(kind) not in (types.UnionType, typing.Union):
        return None
    others = [a for a in get_args(kind) if a is not type(None)]
    return others[0] if len(others) == 1 and len(get_args(kind)) == 2 else None


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a data class; descriptions are its fields' doc strings' classes."""
    definitions: dict[str, Any] = {}
    body = _describe(kind, definitions)
    root = definitions.pop(kind.__name__)
    assert body == {"$ref": f"#/$defs/{kind.__name__}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


_SIMPLE: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},
    Any: {},
    Path: {"type": "string"},
}


def _describe(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            hints = get_type_hints(kind)
            definitions[kind.__name__] = {
                "type": "object",
                "description": " ".join((kind.__doc__ or "").split()),
                "properties": {f.name: _describe(hints[f.name], definitions) for f in dataclasses.fields(kind)},
                "required": [f.name for f in dataclasses.fields(kind)],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if _optional(kind):
        return {"anyOf": [_describe(_optional(kind), definitions), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, list, Sequence):
        return {"type": "array", "items": _describe(arguments[0], definitions)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _describe(arguments[1], definitions)}
    raise TypeError(f"no JSON Schema for {kind}")
