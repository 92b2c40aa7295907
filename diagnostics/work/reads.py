"""What a computation looked at: fields note that they were read, so that nobody has to list what a result rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class Reads:
    """Notes which fields are looked at while a recording is open; ``today`` says what a field holds."""

    def __init__(self, today: Callable[[str], Any]) -> None:
        self._today = today
        self._open: list[set[str]] = []

    def note(self, fields: Iterable[str]) -> None:
        """Note fields in every open recording: what a part looked at, the whole has looked at."""
        for seen in self._open:
            seen.update(fields)

    @contextmanager
    def recording(self) -> Iterator[set[str]]:
        """Open a recording; the set holds what was looked at in the block."""
        seen: set[str] = set()
        self._open.append(seen)
        try:
            yield seen
        finally:
            self._open.pop()

    def values(self, fields: Iterable[str]) -> dict[str, Any]:
        """Return what the fields hold today."""
        return {name: self._today(name) for name in sorted(fields)}

    def make(self, function: Callable[[], Value]) -> Made[Value]:
        """Compute a value that pieces of work will take: what it was made from then counts as read by them."""
        with self.recording() as seen:
            value = function()
        return Made(value, frozenset(seen), self)


@dataclass(frozen=True)
class Made(Generic[Value]):
    """A value and the fields that were looked at when it was made."""

    value: Value
    fields: frozenset[str]
    reads: Reads

    def take(self) -> Value:
        """Return the value; whoever takes it has looked at its fields."""
        self.reads.note(self.fields)
        return self.value


class Noted:
    """An object whose fields note in ``reads`` that they were looked at."""

    def __init__(self, target: Any, reads: Reads) -> None:
        self._target, self._reads = target, reads

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        self._reads.note((name,))
        return value


def unnoted(value: Any) -> Any:
    """Return the object behind a :class:`Noted`, or the object itself: settings of one report may serve another."""
    return value._target if isinstance(value, Noted) else value


class made_once(Generic[Value]):
    """A property computed when first asked for; every access counts as reading what it was made from.

    The owner has ``reads``. (``functools.cached_property`` would note the fields for the first reader alone.)
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_made_{name}"

    @overload
    def __get__(self, owner: None, kind: type) -> made_once[Value]: ...
    @overload
    def __get__(self, owner: object, kind: type) -> Value: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        """Return the value."""
        if owner is None:
            return self
        if self._place not in vars(owner):
            vars(owner)[self._place] = owner.reads.make(lambda: self._function(owner))
        return vars(owner)[self._place].take()
