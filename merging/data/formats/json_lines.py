"""JSON: one object per line (packed by gzip or not), or one file with a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bounds.types import refuse
from merging.data.columns import Columns, Format
from merging.data.rows import RowReader
from merging.data.source import Source
from merging.data.texts import opened


def read_lines(path: Path, source: Source) -> Columns:
    """Read one object per line; a blank line is no row.

    Raises:
        InputError: a line that is no JSON or no object, a name twice in it, a missing column.
    """
    with opened(path) as file:
        parsed = ((number, _parsed(line.strip(), path, number)) for number, line in enumerate(file, 1) if line.strip())
        return _read(path, source, parsed, "line")


def read_list(path: Path, source: Source) -> Columns:
    """Read a list of objects; the file is held in memory while it is read.

    Raises:
        InputError: as :func:`read_lines`; rows are counted from 0.
    """
    with opened(path) as file:
        content = _parsed(file.read(), path, 1)
    if not isinstance(content, list):
        cure = "write a list of objects, or one object per line in a .jsonl file"
        refuse(f"data {path}", expected="a list of objects", got=f"a {type(content).__name__}", cure=cure)
    return _read(path, source, enumerate(content), "row")


def _read(path: Path, source: Source, rows: Iterator[tuple[int, Any]], unit: str) -> Columns:
    reader = None
    for number, row in rows:
        if not isinstance(row, dict):
            cure = 'write e.g. {"text": "...", "label": 0}'
            refuse(f"data {path}, {unit} {number}", expected="an object", got=f"a {type(row).__name__}", cure=cure)
        reader = reader or RowReader(path, source, list(row), unit)
        reader.add(row, number)
    if reader is None:
        refuse(f"data {path}", expected="rows with examples", got="an empty file", cure="name another file")
    return reader.columns()


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where, got = f"data {path}, line {line + error.lineno - 1}", f"{error.msg} at column {error.colno}"
        refuse(where, expected="JSON", got=got, cure="correct the line")
    except KeyError as error:
        where = f"data {path}, line {line}" if "\n" not in text.strip() else f"data {path}"
        refuse(where, expected="each name once in an object", got=f"{error.args[0]!r} twice", cure="rename one of them")
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        refuse(f"data {path}, line {line}", expected="plain JSON", got=str(error)[:60], cure="correct the line")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object.

    Raises:
        KeyError: a name that it has twice, of which JSON's reader would keep the last.
    """
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise KeyError(name)
        result[name] = value
    return result


FORMATS = {"jsonl": Format((".jsonl", ".ndjson"), read_lines), "json": Format((".json",), read_list)}
