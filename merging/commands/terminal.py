"""What every command of the toolkit shares: one line and status 2 for bad input, output that any terminal takes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bounds.types import InputError, refuse
from merging.commands.allocation import keep_freed_memory
from merging.commands.tables import TableConsole

Item = TypeVar("Item")
WIDTH = 120
"""Columns of a table in a pipe."""
SOON = 0.5
"""Seconds after which a pipe is told what goes on."""
LONG = 2.0
"""Seconds after which a pipe is told that a stage has ended, too."""


def run(command: Callable[[], int | None]) -> int:
    """Run a command; return its exit status.

    0 (or what the command returns), 2 after bad input or when the disk or standard output takes no bytes (one line on
    stderr), 130 after an interrupt, 141 when the reader of standard output has gone (as after ``| head -1``; silent).
    """
    keep_freed_memory()
    output: Any = None if sys.stdout is None else _Output(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            status = _flushed(command)
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except _ReaderGone:
        return 141
    except OSError as error:  # a place on the disk that nobody looked at before: still one line
        where = "" if error.filename is None else f" {error.filename}"
        _say(f"error: file{where}: expected one that can be used; got {error.strerror or error}; choose another one")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; nothing half-written")
        return 130
    return status or 0


def _flushed(command: Callable[[], int | None]) -> int | None:
    """Run a command and write out what is buffered where a failure still gets its line; after --help, too."""
    flush = sys.stdout.flush if sys.stdout is not None else lambda: None
    try:
        status = command()
    except SystemExit:
        flush()
        raise
    flush()
    return status


def console() -> Console:
    """Console for tables: as wide as the terminal; where there is none as COLUMNS says, else 120 columns.

    Text is never read as markup. A table that is wider is printed in parts, its column names whole.
    """
    found = TableConsole(markup=False, emoji=False)
    known = found.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return found if known else TableConsole(width=WIDTH, markup=False, emoji=False)


def plain(text: str, style: str = "") -> Text:
    """Return text as it is, for any console or table: no markup, no emoji codes, control characters as escapes.

    To be applied wherever a name, a path or a message is printed; a table's title takes the style ``table.title``.
    """
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), style)


def write_json(text: str) -> None:
    """Write JSON, and nothing else, to standard output; escaped where its encoding lacks a character.

    Raises:
        InputError: standard output is closed.
    """
    if sys.stdout is None:
        refuse("standard output", expected="a place for JSON", got="closed", cure="name a file in place of -")
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(text)


def track(steps: Iterable[Item], description: str, name: Callable[[Item], str] | None = None) -> Iterable[Item]:
    """Go through ``steps`` and show on stderr how far it is: a bar on a terminal, else one line as the stage begins.

    Without a terminal a second line follows when the stage has ended, if it took longer than ``LONG`` seconds. Steps
    that have a ``name``, since each is long, are stages of their own.
    """
    steps, errors = list(steps), Console(stderr=True)
    if not errors.is_terminal:
        return _told(steps, description, name)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return _shown(steps, description, Progress(*columns, console=errors, transient=True))


def _shown(steps: list[Item], description: str, progress: Progress) -> Iterator[Item]:
    with progress:
        yield from progress.track(steps, description=str(plain(description)))


def _told(steps: list[Item], description: str, name: Callable[[Item], str] | None) -> Iterator[Item]:
    """Say what begins; nothing for a stage without steps."""
    if not steps:
        return
    what = f"{plain(description)}: {len(steps)} step{'s' * (len(steps) != 1)}"
    _say(f"{what} …")
    with _told_when_long(what):
        for place, step in enumerate(steps, 1):
            if name is not None:
                _say(f"{description}: {place} of {len(steps)}, {name(step)} …")
            yield step


@contextlib.contextmanager
def stage(description: str) -> Iterator[None]:
    """Say on stderr what goes on: while it lasts on a terminal, else in a line, and one more if it took long.

    Work that ends, or is refused, within ``SOON`` seconds says nothing.
    """
    errors = Console(stderr=True, markup=False, emoji=False)
    if errors.is_terminal:
        with errors.status(plain(description)):
            yield
        return
    begun = threading.Timer(SOON, _say, [f"{description} …"])
    begun.daemon = True  # an interrupt does not wait for it
    begun.start()
    try:
        with _told_when_long(description):
            yield
    finally:
        begun.cancel()


@contextlib.contextmanager
def _told_when_long(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    if seconds > LONG:
        _say(f"{what} done in {seconds:.1f} s")


def _say(line: str) -> None:
    """Print a line on stderr. Nobody may be listening there: that must not end the work."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(str(plain(line)).replace("\n", " "), file=sys.stderr, flush=True)


class _ReaderGone(Exception):
    """Whoever read standard output has closed it."""


class _Output:
    """Standard output that takes any character, and tells why it takes no bytes in one line instead of a traceback."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks becomes \u…

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._stream is sys.__stdout__:  # what is still buffered would fail again when the interpreter ends
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno == errno.EPIPE:
                raise _ReaderGone from None
            got = error.strerror or str(error)
            refuse("standard output", expected="a place that takes text", got=got, cure="redirect it elsewhere")
