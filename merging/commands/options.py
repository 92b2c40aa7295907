"""The options of a command: read by tyro, refused in one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import make_dataclass
from inspect import cleandoc
from typing import Annotated, NoReturn, TypeVar, get_type_hints

import tyro

from bounds.types import InputError, refuse

Command = TypeVar("Command")
_RULE = re.compile(r"[\s│╰]*[─-]{3,}[\s│╯]*")


def options(kind: Callable[..., Command], arguments: Sequence[str] | None, prog: str) -> Command:
    """Return a command's options, read from its arguments; its docstring heads ``--help``.

    Args:
        kind: data class of the options, or a function of them.
        arguments: what was typed after the command's name (None: what this process was started with).
        prog: the command's name, for --help.

    Raises:
        InputError: an unknown option, one that is missing, a value that does not fit.
        SystemExit: with status 0, after --help.
    """
    with one_line(prog):
        description = cleandoc(kind.__doc__ or "") if isinstance(kind, type) else None
        return tyro.cli(kind, args=arguments, prog=prog, description=description)


def hiding(kind: type[Command], names: Iterable[str]) -> type[Command]:
    """Return the data class ``kind`` with these fields at their defaults: no options, and not in ``--help``.

    Args:
        kind: a frozen data class.
        names: of fields that have a default.
    """
    hints = get_type_hints(kind, include_extras=True)
    kept = [(name, Annotated[hints[name], tyro.conf.Fixed, tyro.conf.Suppress], getattr(kind, name)) for name in names]
    namespace = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return make_dataclass(kind.__name__, kept, bases=(kind,), namespace=namespace, frozen=True, kw_only=True)


@contextlib.contextmanager
def one_line(prog: str) -> Iterator[None]:
    """Turn the box in which tyro refuses an option into the project's one line.

    Raises:
        InputError: in place of status 2.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as end:
        if end.code != 2:
            raise
        _refuse(end, box.getvalue(), prog)


def _refuse(end: SystemExit, box: str, prog: str) -> NoReturn:
    own = end.__context__
    while own is not None and not isinstance(own, InputError):
        own = own.__context__
    if own is not None:  # a data class has refused its values, which tyro puts into a box, too
        raise own from None
    said, *others = [" ".join(part.split()).rstrip(".") for part in _sections(box)]
    near = next((part for part in others if part.startswith("Perhaps you meant")), "")
    option = next((word for word in near.split() if word.startswith("--")), None)
    cure = f"did you mean {option}?" if option else "correct it"
    refuse("options", expected=f"those of {prog} --help", got=said[:1].lower() + said[1:], cure=cure)


def _sections(box: str) -> list[str]:
    """Return the texts between the rules of a box, without its title and what was warned of before."""
    lines = box.splitlines()
    ruled = [_RULE.fullmatch(line) is not None for line in lines]
    top = next((i for i, line in enumerate(lines) if line.startswith("╭")), None)
    if top is None:  # where standard output takes no such signs, the title has a rule below it
        top = ruled.index(True) if any(ruled) else -1
    parts = [""]
    for line, rule in list(zip(lines, ruled, strict=True))[top + 1 :]:
        if rule:
            parts.append("")
        else:
            parts[-1] += f" {line.strip('│ ')}"
    return parts
