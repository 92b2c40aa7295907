"""Writing files so that each is complete or not there; an older one stays until the new one is on the disk.

A link stays a link: the file behind it is replaced. A dangling link is followed too, as the shell does: the file it
names is made. Nothing but a regular file is ever replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from bounds.types import refuse

_MARK = ".mergebound-"
_LONGEST = 255
"""Bytes of a file's name that every file system takes."""
_SHIPPED = Path(__file__).resolve().parent
_KINDS: Mapping[Callable[[int], bool], str] = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def check_destination(path: str | Path, what: str = "output") -> Path:
    """Check, before any work, that a file can be written at ``path``.

    Raises:
        InputError: something that is no regular file; a place whose folder does not exist or cannot be written; a file
            that belongs to this package.
    """
    _behind(Path(path), what)
    return Path(path)


def check_folder(path: str | Path, what: str, files: Sequence[str] = (), *, parents: bool = False) -> Path:
    """Check, before any work, that ``files`` can be written into a folder that is there or can be made.

    Args:
        path: the folder.
        what: what it is for, for the message.
        files: names or relative paths that will be written there.
        parents: whether folders above it are made as well; else the one above it must exist.

    Raises:
        InputError: they cannot.
    """
    path = Path(path)
    try:
        there = next(p for p in ((path, *path.absolute().parents) if parents else (path, path.parent)) if _exists(p))
        good = there.is_dir() and os.access(there, os.W_OK) and (there == path or not path.is_symlink())
        got = str(there) if there == path or not path.is_symlink() else f"a link to {os.readlink(path)}"
    except StopIteration:
        good, got = False, str(path.parent)
    except OSError as error:
        good, got = False, error.strerror or str(error)
    if not good:
        refuse(f"{what} {path}", expected="a folder that can be made and written", got=got, cure="choose another one")
    if path.is_dir():
        for name in files:
            if (path / name).parent.is_dir():
                check_destination(path / name, what)
    return path


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path] | None = None) -> None:
    """Check, before any work, that every output is a place of its own and that none of them is an input.

    Args:
        outputs: option or name of the file -> where it goes; None where it is not asked for.
        inputs: option -> file that is read.

    Raises:
        InputError: see :func:`check_destination`; two names of one file.
    """
    taken: dict[Path, str] = {place(path): name for name, path in (inputs or {}).items()}
    for name, path in outputs.items():
        if path is None:
            continue
        target = _behind(path, name)
        if target in taken:
            refuse(f"{name} {path}", expected=f"another file than {taken[target]}", got="the same", cure="rename one")
        taken[target] = name


def place(path: Path) -> Path:
    """Return where a path leads, with links followed; it need not exist."""
    return Path(os.path.realpath(path))


@contextmanager
def replacing(path: str | Path, what: str = "output") -> Iterator[Path]:
    """Give the name of an empty temporary file beside ``path``; it takes its place when the block has ended well.

    Temporary files that killed runs left for the same output are removed.

    Raises:
        InputError: see :func:`check_destination`; also when the disk refuses the bytes.
    """
    path = Path(path)
    target = _behind(path, what)
    temporary: Path | None = None
    try:
        _clear_stale(target)
        with _temporary(target) as temporary:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
            os.replace(temporary, _behind(path, what))  # what stands there may have changed meanwhile
    except OSError as error:
        _refuse_disk(what, path, error)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write(path: str | Path, content: Callable[[BinaryIO], object], what: str = "output") -> None:
    """Write a file with ``content(open file)``, atomically.

    Raises:
        InputError: see :func:`replacing`.
    """
    with replacing(path, what) as temporary, open(temporary, "wb") as file:
        content(file)
        file.flush()


@contextmanager
def replacing_folder(path: str | Path, what: str = "output folder") -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``; it takes its place when the block has ended well.

    So a folder is there as a whole or not at all. Temporary folders that killed runs left for it are removed.

    Raises:
        InputError: see :func:`check_folder`; something in the folder already; when the disk refuses the bytes.
    """
    target = place(check_folder(path, what))
    if target.is_dir() and any(target.iterdir()):
        got = f"one with {next(target.iterdir()).name} in it"
        refuse(f"{what} {path}", expected="a new or empty folder", got=got, cure="name another one, or empty it")
    temporary = target.with_name(_prefix(target) + secrets.token_hex(4))
    try:
        _clear_stale(target)
        temporary.mkdir()
        with _locked(temporary):
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                file.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(temporary, target)
    except OSError as error:
        _refuse_disk(what, path, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def encoded(text: str) -> bytes:
    """Return text as UTF-8; halves of surrogate pairs (of paths that are no UTF-8) as the escapes that JSON reads."""
    return text.encode("utf-8", "backslashreplace")


def _refuse_disk(what: str, path: str | Path, error: OSError) -> NoReturn:
    refuse(
        f"{what} {path}",
        expected="room on a disk that can be written",
        got=error.strerror or error,
        cure="free space or choose another disk",
    )


def _behind(path: Path, what: str) -> Path:
    """Return the regular file that ``path`` leads to, or the place where it will be made."""
    try:
        mode = os.stat(path).st_mode  # of what a link leads to, /dev/stdout included
    except FileNotFoundError:
        mode = None
    except OSError as error:
        refuse(f"{what} {path}", expected="a file name", got=error.strerror or error, cure="choose another name")
    if mode is not None and not stat.S_ISREG(mode):
        got = next((kind for test, kind in _KINDS.items() if test(mode)), "something else")
        refuse(f"{what} {path}", expected="a file name or a regular file", got=got, cure="choose a name such as out.pt")
    target = place(path)
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        refuse(f"{what} {path}", expected="a writable folder", got=f"{target.parent}", cure="create the folder first")
    if target.is_relative_to(_SHIPPED):
        refuse(f"{what} {path}", expected="a place of your own", got="a folder of the package", cure="name another one")
    return target


def _exists(path: Path) -> bool:
    """Whether something is there; what cannot be looked at raises OSError."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Give an empty file beside ``target`` that is locked as long as its process lives: so others know it is used."""
    while True:
        path = target.with_name(_prefix(target) + secrets.token_hex(4))
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _lock(handle)
            if os.fstat(handle).st_nlink:  # else another run took it for a stale one before it was locked
                yield path
                return
        finally:
            os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder that is no link; say whether it was free."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _clear_stale(target: Path) -> None:
    """Remove the temporary files and folders of ``target`` that no living process holds."""
    pattern = re.compile(re.escape(_prefix(target)) + "[0-9a-f]{8}")
    with os.scandir(target.parent) as entries:
        found = [e for e in entries if pattern.fullmatch(e.name) and not e.is_symlink()]
    for entry in found:
        if not (entry.is_file() or entry.is_dir()):
            continue
        with contextlib.suppress(OSError), _locked(Path(entry.path)) as free:  # it may be another run's or user's
            if free and entry.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            elif free:
                os.unlink(entry.path)


def _lock(handle: int) -> bool:
    """Lock a file without waiting; False if another process has it, or if the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _prefix(target: Path) -> str:
    """Return how the names of ``target``'s temporary files begin, short enough for any file system."""
    room = _LONGEST - len(_MARK) - 9
    return f".{os.fsencode(target.name)[:room].decode(errors='ignore')}{_MARK}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
