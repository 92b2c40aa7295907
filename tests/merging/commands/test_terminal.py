"""What every command shares: one line for bad input, any terminal, progress that a pipe hears."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bounds.types import InputError
from merging.commands import plain, run, track

ROOT = Path(__file__).resolve().parents[3]
TALK = r"""
import sys
from merging.commands import console, run
sys.exit(run(lambda: console().print("naïve 任务 → λ\n" * {})))
"""


def child(code, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})}
    return subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, **more)


def test_a_terminal_without_letters_shows_escapes():
    done = child(TALK.format(1), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("na\\xefve")


def test_a_reader_that_has_gone_ends_the_command_in_silence():
    read, write = os.pipe()
    os.close(read)
    done = child(TALK.format(1), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_standard_output_that_takes_no_bytes_is_one_line():
    with open("/dev/full", "w") as full:
        done = child(TALK.format(20000), stdout=full)
    assert done.returncode == 2
    expected = "expected a place that takes text; got No space left on device"
    assert done.stderr == f"error: standard output: {expected}; redirect it elsewhere\n"


def test_statuses(capsys):
    def refuse():
        raise InputError("what: expected a; got\nb; cure")

    def interrupt():
        raise KeyboardInterrupt

    assert run(lambda: None) == 0
    assert run(lambda: 1) == 1
    assert run(refuse) == 2
    assert run(interrupt) == 130
    assert capsys.readouterr().err == "error: what: expected a; got b; cure\ninterrupted; nothing half-written\n"


def test_a_pipe_hears_what_begins(capsys):
    assert list(track([1, 2], "learning [bold]x")) == [1, 2]
    assert list(track([], "nothing")) == []
    assert capsys.readouterr().err == "learning [bold]x: 2 steps …\n"


@pytest.mark.parametrize("markup", [False, True])
@pytest.mark.parametrize("name", ["[/nope]", "[bold]x", ":smile:", "a\x1b[31mb"])
def test_names_are_shown_as_they_are(name, markup):
    console = Console(width=80, markup=markup, record=True, file=io.StringIO())
    console.print(plain(name))
    assert console.export_text().strip() == name.replace("\x1b", "\\x1b")
