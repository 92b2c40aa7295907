"""Tables of text with a header: csv (RFC 4180: commas, quotes doubled) and tsv (tabs).

Many files of tabs take quotes for text: read as marks, two of them would swallow the rows between. So there a quoted
field may hold no tab, of which every row has one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from bounds.types import refuse
from merging.data.columns import Columns, Format
from merging.data.rows import RowReader
from merging.data.source import Source
from merging.data.texts import opened

LONGEST = 2**31 - 1
"""Characters of a field; the csv module's own limit is 128 K."""


def read(path: Path, source: Source, delimiter: str) -> Columns:
    """Read the wanted columns; a blank line is no row.

    Raises:
        InputError: no header or a name twice in it, a missing column, a row of another length, bad quotes; with the
            line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    with opened(path) as file:
        lines = _lines(file, path, delimiter)
        _, header = next(lines, (0, []))
        if not header:
            cure = "write the names of the columns in the first line"
            refuse(f"data {path}", expected="a header", got="an empty file", cure=cure)
        if len(set(header)) != len(header):
            twice, cure = max(header, key=header.count), "rename one of them"
            refuse(f"data {path}, line 1", expected="each column once", got=f"{twice!r} twice", cure=cure)
        reader = RowReader(path, source, header)
        for line, row in lines:
            if len(row) != len(header):
                cure = "quote fields that hold the delimiter or a line's end"
                got = f"{len(row)} fields"
                refuse(f"data {path}, line {line}", expected=f"{len(header)} fields", got=got, cure=cure)
            reader.add(dict(zip(header, row, strict=True)), line)
    return reader.columns()


def _lines(file: TextIO, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row with the line where it begins."""
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            cure = "double the quotes inside a quoted field and quote fields that begin with one, or save it as .jsonl"
            refuse(f"data {path}, line {line}", expected="fields quoted as in RFC 4180", got=error, cure=cure)
        if row is None:
            return
        if delimiter == "\t" and any("\t" in field for field in row):
            got, cure = "a tab between quotes", "save the data as .csv or .jsonl"
            where = f"data {path}, line {line}"
            refuse(where, expected="quotes that are plainly text or plainly marks", got=got, cure=cure)
        if row:
            yield line, row


FORMATS = {
    "csv": Format((".csv",), partial(read, delimiter=",")),
    "tsv": Format((".tsv", ".tab"), partial(read, delimiter="\t")),
}
