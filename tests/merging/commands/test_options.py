"""Options of a command: refused in one line whatever the reason and the terminal, hidden where nothing reads them."""

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest

from bounds.types import InputError, refuse
from merging.commands import one_line, options
from merging.commands.options import hiding


@dataclass(frozen=True)
class Command:
    """Do a thing."""

    name: str
    """What it is about."""
    steps: int = 3
    """How often."""
    rate: float = 0.5
    """How much."""

    def __post_init__(self):
        if self.steps < 1:
            refuse("steps", expected="at least 1", got=self.steps, cure="raise it")


def refusal(*arguments, kind: type = Command):
    with pytest.raises(InputError) as caught:
        options(kind, arguments, "program do")
    return str(caught.value)


@pytest.fixture(params=["utf-8", "ascii"])
def _terminal(request, monkeypatch):
    """Where standard output takes no lines of a box, they are made of other signs."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=request.param))


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize(
    ("arguments", "said", "cure"),
    [
        ("", "--name", "correct it"),
        ("--name x --stepz 3", "--stepz, 3", "did you mean --steps?"),
        ("--name x --zzzzz", "--zzzzz", "correct it"),
        ("--name x --steps y", "--steps: invalid literal for int() with base 10: 'y'", "correct it"),
        ("--name", "missing value for argument", "correct it"),
    ],
)
def test_whatever_is_wrong_is_one_line(arguments, said, cure):
    found = refusal(*arguments.split())
    what, got, last = found.split("; ")
    assert what == "options: expected those of program do --help"
    assert got.startswith("got ")
    assert said in got
    assert last == cure
    assert not set("│╭╰─\n") & set(found)


def test_a_refusal_of_the_options_themselves_stays_as_it_is():
    assert refusal("--name", "x", "--steps", "0") == "steps: expected at least 1; got 0; raise it"


def test_what_is_right_is_read_and_help_is_told_apart_from_errors(capsys):
    assert options(Command, ["--name", "x", "--steps", "4"], "program do") == Command("x", 4)
    with pytest.raises(SystemExit) as end:
        options(Command, ["--help"], "program do")
    assert not end.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: program do ")
    assert "Do a thing." in text


def test_what_the_command_says_itself_goes_through():
    error = io.StringIO()
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end, one_line("program do"):
        sys.exit(3)
    assert end.value.code == 3


def test_hidden_fields_are_no_options_and_keep_their_defaults(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        """Settings."""

        rho: float = 0.25
        """Radius."""
        seed: int = 0
        """Seed."""

    hidden = hiding(Settings, ["rho"])
    assert issubclass(hidden, Settings)
    found = options(hidden, ["--seed", "4"], "program do")
    assert (found.rho, found.seed) == (0.25, 4)
    assert "--rho" in refusal("--rho", "1", kind=hidden)
    with pytest.raises(SystemExit):
        options(hidden, ["--help"], "program do")
    text = capsys.readouterr().out
    assert "--seed" in text
    assert "--rho" not in text
