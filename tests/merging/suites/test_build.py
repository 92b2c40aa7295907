"""``python -m merging.suites.build NAME``."""

import subprocess
import sys

import pytest

from merging.suites import build


def test_the_suites_that_can_be_built_are_found():
    assert "text8" in build.names()
    assert "toy" not in build.names()


@pytest.mark.parametrize("arguments", [["nothing"], [], ["toy"]])
def test_another_name_is_refused_with_those_there_are(arguments, capsys):
    assert build.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: suite: expected ")
    assert "text8" in said
    assert said.count("\n") == 1


def test_help(capsys):
    assert build.main(["--help"]) == 0
    assert "text8" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build.main(["text8", "--help"])
    assert "--permuted" in capsys.readouterr().out


def test_bad_settings_are_one_line_and_no_warning():
    command = [sys.executable, "-W", "error", "-m", "merging.suites.build", "text8", "--weights", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: weights nowhere: expected model.safetensors in it; got nothing there; ")
