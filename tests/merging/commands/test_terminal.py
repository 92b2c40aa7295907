"""What commands say: one line for what is wrong, stages in a pipe, any text as it is, on any terminal."""

import io
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bounds.types import InputError
from merging.commands import console, plain, run, stage, terminal, track, write_json
from merging.commands.terminal import _Output


def child(code, *, stdout: Any = subprocess.PIPE, **environment):
    """Run a command in a process of its own that does not import PyTorch a second time."""
    code = f"import sys; from merging.commands.terminal import *\nsys.exit(run(lambda: {code}))"
    given = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, env=given)


def test_a_pipe_hears_how_far_long_work_is(capsys, monkeypatch):
    assert list(track([1, 2, 3], "learning")) == [1, 2, 3]
    assert list(track([], "nothing")) == []
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "learning: 3 steps …\n"
    monkeypatch.setattr(terminal, "LONG", -1.0)
    assert list(track(["x"], "one")) == ["x"]
    assert capsys.readouterr().err.startswith("one: 1 step …\none: 1 step done in 0.")


def test_steps_with_names_are_stages_of_their_own(capsys):
    assert list(track(["ties", "average"], "merging", str.upper)) == ["ties", "average"]
    lines = ["merging: 2 steps …", "merging: 1 of 2, TIES …", "merging: 2 of 2, AVERAGE …"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_stage_is_told_in_a_pipe_once_it_lasts_and_when_it_was_long(monkeypatch):
    said, heard = [], threading.Event()
    monkeypatch.setattr(terminal, "_say", lambda line: (said.append(line), heard.set()))
    with stage("loading quickly"):
        pass
    with pytest.raises(InputError), stage("loading nothing"):
        raise InputError("refused at once: expected silence; got it; none")
    assert said == [], "work that ends at once says nothing"
    monkeypatch.setattr(terminal, "SOON", 0.0)
    monkeypatch.setattr(terminal, "LONG", -1.0)
    with stage("loading"):
        assert heard.wait(30)
    assert said[0] == "loading …"
    assert said[1].startswith("loading done in ")


def test_work_goes_on_when_nobody_hears_it(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert list(track([1, 2], "work")) == [1, 2]


@pytest.mark.parametrize("name", ["[/nope]", "[bold]x", ":smile:", "a\x1b[31mb", "<b>", "任务", "\udcff", "$x$", "\\"])
def test_names_of_tasks_and_other_text_are_printed_as_they_are(name):
    table = Table(title=plain(name, "table.title"))
    table.add_column(plain(name))
    table.add_row(plain(name))
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    Console(file=out, width=60).print(table, plain(name))
    out.seek(0)
    assert out.read().count(name if name.isprintable() else repr(name)[1:-1]) == 4


def test_the_commands_console_reads_no_markup(capsys):
    console().print("[/nope] :smile: [bold]x")
    assert capsys.readouterr().out == "[/nope] :smile: [bold]x\n"


def test_a_character_that_the_terminal_lacks_is_escaped():
    done = child('print("θ")', PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u03b8\n", "")


@pytest.mark.parametrize("text", ["θ", "é", "😀", "\udcff"])
def test_json_on_any_terminal_is_json(text, monkeypatch):
    for encoding in ("ascii", "latin-1", "utf-8"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", _Output(out))
        write_json(json.dumps([text], ensure_ascii=False))
        out.seek(0)
        assert json.loads(out.read()) == [text]


@pytest.mark.parametrize("code", ['print("x" * 9)', 'print("x" * 99999)', 'console().print("x")', 'write_json("{}")'])
def test_a_closed_pipe_is_silent_and_status_141(code):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as pipe:
        done = child(code, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
@pytest.mark.parametrize("code", ['print("x")', 'console().print("x")', 'write_json("{}")'])
def test_a_full_disk_behind_standard_output_is_one_line_and_status_2(code):
    with open("/dev/full", "w") as full:  # opened for writing, never replaced
        done = child(code, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: expected a place that takes text; got No space left")
    assert done.stderr.count("\n") == 1


def test_a_file_that_nobody_looked_at_before_is_one_line(tmp_path, capsys):
    assert run(lambda: (tmp_path / "none").open() and None) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: file {tmp_path / 'none'}: expected")
    assert error.count("\n") == 1


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
