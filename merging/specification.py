"""How a merge is written: ``ties:density=0.1+svc``, a method with its settings, then post-processings with theirs."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bounds.types import meant, refuse
from merging.rows import Method, PostProcessing

_NEXT = re.compile(r"\+(?=[A-Za-z_])")
"""Between two parts; a number such as 1e+3 is none."""


@dataclass(frozen=True)
class Specification:
    """A method with the settings that differ from its defaults, and what follows it: name -> settings, in order."""

    method: str
    given: Mapping[str, Any] = field(default_factory=dict)
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The specification as it is written."""
        return "+".join(_written(name, given) for name, given in ((self.method, self.given), *self.then.items()))

    @property
    def named(self) -> str:
        """The same without the method's settings: what :func:`merging.merge` takes with these as keywords."""
        return Specification(self.method, {}, self.then).label


def _written(name: str, given: Mapping[str, Any]) -> str:
    settings = ",".join(f"{key}={value}" for key, value in given.items())
    return f"{name}:{settings}" if settings else name


def parse(text: str, methods: Mapping[str, Method], after: Mapping[str, PostProcessing]) -> Specification:
    """Read a specification; whether the method is known, and its settings in range, is left to who looks it up.

    Args:
        text: ``NAME``, ``NAME:SETTING=VALUE,...``, each followed by any number of ``+NAME:SETTING=VALUE,...``.
        methods: the table of methods.
        after: the table of post-processings.

    Raises:
        InputError: an unknown setting, a value that does not fit; an unknown post-processing, one named twice, one of
            something that is no method.
    """
    first, *rest = _NEXT.split(text)
    method, given = _read(first, methods)
    then: dict[str, Mapping[str, Any]] = {}
    for part in rest:
        name = part.partition(":")[0]
        if name not in after:
            refuse("post-processing", expected=" or ".join(after), got=repr(name), cure=meant(name, after))
        if method not in methods:
            expected = f"a method before +{name}: {' or '.join(methods)}"
            refuse("method", expected=expected, got=repr(method), cure=meant(method, methods))
        if name in then:
            refuse(f"post-processing {name}", expected="once", got=f"twice in {text}", cure="remove one")
        then[name] = _read(part, after)[1]
        after[name].settings(**then[name])  # refuses what is out of range before any work
    return Specification(method, given, then)


def _read(text: str, table: Mapping[str, Method] | Mapping[str, PostProcessing]) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of one part."""
    name, _, rest = text.partition(":")
    hints = typing.get_type_hints(table[name].settings) if name in table else {}
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or key not in hints:
            known = "NAME=VALUE of " + (" or ".join(hints) or "none")
            refuse(f"setting of {name}", expected=known, got=repr(part), cure=meant(key, hints, "see mergebound list"))
        given[key] = _value(key, value, hints[key])
    return name, given


def _value(name: str, text: str, hint: Any) -> object:
    """Read a value as the first of the setting's types that it fits."""
    kinds = {hint, *typing.get_args(hint)}
    constants = {"None": None, "True": True, "False": False}
    if text in constants and type(constants[text]) in kinds:
        return constants[text]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if kinds & {int, float, bool}:
        refuse(name, expected=getattr(hint, "__name__", str(hint)), got=repr(text), cure="write one")
    return text
