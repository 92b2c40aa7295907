"""An unpickler that runs nothing of what a file names.

A pickle names functions and classes, and asks for calls. Here a name yields one of these, and never the object itself:

- for tensors and their storages, a constructor that checks its arguments and gives the numbers in a ``Held``;
- an ordered dictionary, or the items of a set;
- for everything else, os.system included, a new class whose instances keep what they are given and do nothing.

So what a file can call is defined here. Nothing is imported on its behalf, and it gets hold of no object of a library,
whose attributes it could set or whose ``__setstate__`` it could call.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}
_STORAGES = {f"{name}Storage": dtype for name, dtype in _DTYPES.items()}
_LONGEST = 200
"""Letters of a name that are kept for messages."""


class Unreadable(ValueError):
    """A pickle asks for what no checkpoint needs, such as a tensor beyond its numbers."""


class Fixed:
    """What a file may hold and not change."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        """Refuse a state."""
        raise Unreadable("a state for what has none")


class Held(Fixed):
    """A tensor, or the numbers of a storage (one axis; of an untyped one its bytes)."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Items(Fixed):
    """The items of a set; they need not be hashable, as stubs may be among them."""

    __slots__ = ("items",)

    def __init__(self, items: Any = ()) -> None:
        self.items = tuple(items)


class _Kind(Fixed):
    """Stands for the class of a storage, or for a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Maker(Fixed):
    """Stands for a function of PyTorch that makes a tensor."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class Stub:
    """An instance of any class that a pickle names: it keeps arguments, state and items, and does nothing."""

    __slots__ = ("arguments", "items", "state")
    origin = ""

    def __new__(cls, *arguments: Any, **_: Any) -> Stub:
        """Keep the arguments; a class's own ``__new__`` and ``__init__`` are not known here."""
        stub = object.__new__(cls)
        stub.arguments, stub.state, stub.items = arguments, None, []
        return stub

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Keep an item, as of a class derived from list."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Keep items."""
        self.items.extend(values)

    def add(self, value: Any) -> None:
        """Keep an item, as of a class derived from set."""
        self.items.append(value)


class Unpickler(pickle.Unpickler):
    """Reads one pickle (see the module's text); ``imports`` lists the names that are no part of a state dict.

    Args:
        file: the pickle.
        storage: (key, dtype, count) -> numbers of a storage, for the persistent ids of ``torch.save``.
        size: bytes of the file; no tensor may be larger.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor], size: int) -> None:
        _check_places(file)
        super().__init__(file, encoding="utf-8")
        self.imports: list[str] = []
        self._storage, self._size = storage, size
        self._given: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name; the same for the same name."""
        if (module, name) not in self._given:
            self._given[module, name] = self._stand_in(module, name)
        return self._given[module, name]

    def _stand_in(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return _Kind(dtype)
        if (module, name) in (("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")):
            return _Maker(lambda *arguments: Held(_rebuilt(self._size, *arguments)))
        if (module, name) in _MADE:
            return _MADE[module, name]()
        shown = f"{module}.{name}"[:_LONGEST]
        self.imports.append(shown)
        return type("Stub", (Stub,), {"origin": shown, "__slots__": ()})

    def persistent_load(self, pid: Any, /) -> Any:
        """Return a storage; in the format before PyTorch 1.6 also a module, which comes with its source."""
        match pid:
            case ("module", kind, *_):
                return kind
            case ("storage", _Kind() as kind, str() as key, _, int() as count, *rest) if not any(rest):
                return Held(self._storage(key, kind.dtype, count))
        raise Unreadable("a storage that is described in an unknown way")


def _check_places(file: IO[bytes]) -> None:
    """Check that a pickle numbers its objects within its own length: Python makes room for the highest number."""
    start = file.tell()
    puts = ("PUT", "BINPUT", "LONG_BINPUT")
    highest = max((place or 0 for code, place, _ in pickletools.genops(file) if code.name in puts), default=0)
    if highest > file.tell() - start:
        raise Unreadable("more objects than bytes")
    file.seek(start)


def _rebuilt(size: int, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    """Rebuild a tensor within the numbers of its storage, and no larger than the file of ``size`` bytes."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Held) or storage.tensor.ndim != 1 or len(shape) != len(stride):
        raise Unreadable("a tensor without numbers")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Unreadable(f"a tensor of shape {numbers[1:5]}")
    kinds = [part.dtype for part in rest[2:3] if isinstance(part, _Kind)]
    values = storage.tensor.view(kinds[0]) if kinds else storage.tensor
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if count and (last >= len(values) or count * values.element_size() > size):
        raise Unreadable(f"a tensor of shape {tuple(shape)} in {len(values)} numbers")
    return values.as_strided(shape, stride, offset) if count else values.new_empty(shape)


def _first(value: Any, *_: Any) -> Any:
    return value


def _typed(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Rebuild a tensor that has attributes or a class of its own; both are left out."""
    if not isinstance(function, _Maker) or not isinstance(arguments, tuple):
        raise Unreadable("a tensor that is made in an unknown way")
    return function(*arguments)


def _ordered() -> type:
    class Ordered(dict):
        __slots__ = ()

        def __setstate__(self, _: Any) -> None:
            """Leave out attributes, such as the versions of a state dict."""

    return Ordered


_MADE: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): _ordered,
    **{
        (module, name): lambda: _Maker(Items) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")
    },
    ("torch._utils", "_rebuild_parameter"): lambda: _Maker(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): lambda: _Maker(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): lambda: _Maker(_typed),
}
"""What stands for the names of PyTorch and Python that a state dict needs."""
