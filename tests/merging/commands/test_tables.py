"""Tables on any width: whole column names, every cell there, no line wider than the console."""

import io
import re

import pytest
from rich.table import Table

from merging.commands import TableConsole, console, plain
from merging.commands.tables import fitted
from merging.commands.terminal import WIDTH

NAMES = ["method", "sharpness, coefficients", "λ_max Hessian", "own risk, mean of R_jj", "test accuracy, 5 seeds (%)"]


def table(*, rows=3):
    made = Table(title="a title", caption="a caption")
    for index, name in enumerate(NAMES):
        made.add_column(name, justify="right" if index else "left")
    for row in range(rows):
        made.add_row(plain(f"method-{row}"), *(f"{row}.{column}25 ± 0.010" for column in range(1, len(NAMES))))
        if row == 1:
            made.add_section()
    return made


def printed(shown, width):
    out = io.StringIO()
    TableConsole(file=out, width=width, markup=False, emoji=False).print(shown)
    return out.getvalue()


def headers(text):
    """Return the names of the columns of every part: the lines between the two heavy rules."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("┏")]
    ends = [i for i, line in enumerate(lines) if line.startswith("┡")]
    return [
        [cell.strip() for cell in line.strip("┃").split("┃")]
        for start, end in zip(starts, ends, strict=True)
        for line in lines[start + 1 : end]
    ]


@pytest.mark.parametrize("width", [60, 72, 80, 120, 200])
def test_column_names_stay_whole_and_every_cell_is_there(width):
    text = printed(table(), width)
    assert max(map(len, text.splitlines())) <= width
    found = headers(text)
    assert all(part[0] == NAMES[0] for part in found)
    assert [name for part in found for name in part[1:]] == NAMES[1:]
    assert "…" not in text
    for row in range(3):
        for column in range(1, len(NAMES)):
            assert f"{row}.{column}25 ± 0.010" in text
    assert text.count("a title") == text.count("a caption") == 1
    assert text.count("method-2") == len(found) == text.count("├"), "every part has the rows, and the line after two"


def test_a_plain_console_would_have_cut_them():
    """The mutant: what rich does on its own."""
    out = io.StringIO()
    from rich.console import Console

    Console(file=out, width=60).print(table())
    assert "…" in out.getvalue()


def test_a_table_that_fits_is_printed_as_it_is():
    out = io.StringIO()
    from rich.console import Console

    Console(file=out, width=200).print(table())
    assert printed(table(), 200) == out.getvalue()


def test_long_cells_fold_and_lose_nothing():
    made = Table("task", "what")
    long = "x" * 130
    made.add_row(plain(long), "two words " * 9)
    text = printed(made, 40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("x") == 130
    assert len(re.findall(r"\btwo\b", text)) == 9


def test_a_column_name_longer_than_half_a_console_folds_and_loses_nothing():
    made = Table("task", "y" * 300)
    made.add_row("a", "b")
    text = printed(made, 50)
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("y") == 300


def test_parts_begin_with_the_column_that_names_the_rows():
    made = Table()
    for name in ("#", "method", "accuracy on the test split", "another column that is long"):
        made.add_column(name, justify="left" if name == "method" else "right")
    made.add_row("1", "ties", "81.2", "4")
    parts = fitted(made, TableConsole(width=60))
    assert [[str(column.header) for column in part.columns] for part in parts] == [
        ["#", "method", "accuracy on the test split"],
        ["#", "method", "another column that is long"],
    ]


def test_an_empty_table_and_one_without_columns_are_printed():
    assert printed(Table(), 40).strip() == ""
    assert "a b" in printed(Table("a b"), 40)


def test_a_pipe_is_120_columns_wide_or_as_wide_as_columns_says(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == WIDTH
    for columns, width in (("60", 60), ("many", WIDTH), ("", WIDTH)):
        monkeypatch.setenv("COLUMNS", columns)
        assert console().width == width
    monkeypatch.setenv("COLUMNS", "60")
    console().print(table())
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60
    assert [name for part in headers(text) for name in part[1:]] == NAMES[1:]
