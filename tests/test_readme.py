"""README's code runs as it stands, and its commands are those of the Makefile."""

import re
from pathlib import Path

from diagnostics.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def joined(text):
    """Text with the lines that end in a backslash continued."""
    return re.sub(r"\s*\\\n\s*", " ", text)


def test_the_python_example_runs_and_is_short(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    body = code.split("\n\n", 1)[1]
    assert len(body.strip().splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert "certified" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_commands_are_those_of_the_makefile():
    makefile = joined((ROOT / "Makefile").read_text(encoding="utf-8"))
    commands = [line.split("#")[0].strip() for line in joined("\n".join(blocks("bash"))).splitlines()]
    assert {"make", "mergebound"} <= {command.split()[0] for command in commands if command}
    for command in commands:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE), command
        elif command.startswith(("python -m merging", "python -m diagnostics")):
            assert f"$(BIN)/{command}" in makefile, command
        elif command.startswith("mergebound "):
            assert command.split()[1] in COMMANDS, command


def test_files_it_names_exist():
    names = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).is_file(), name


def test_modules_it_names_exist():
    import importlib

    names = re.findall(r"`((?:bounds|merging|diagnostics)(?:\.\w+)+)`", README)
    assert len(names) > 5
    for dotted in names:
        module, _, name = dotted.rpartition(".")
        if not (ROOT / (dotted.replace(".", "/") + ".py")).is_file() and not (ROOT / dotted.replace(".", "/")).is_dir():
            assert hasattr(importlib.import_module(module), name), dotted
