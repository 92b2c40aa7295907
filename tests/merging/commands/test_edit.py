"""``mergebound edit``: what it writes is what the function makes; bad input is one line."""

import pytest
import torch

from merging import merge
from merging.artifact import load, save
from merging.commands import merge as merge_command
from merging.commands.edit import main
from merging.editing import Edit, edited
from merging.suites import toy


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = toy.build()
    artifact = merge("average", suite)
    save(artifact, "out.pt")
    return suite, artifact


def test_the_command_writes_what_the_function_makes(made, capsys):
    suite, artifact = made
    given = ["--without", "task1", "--scale", "1.5", "--base", "second.*", "--candidates", "4"]
    assert main(["out.pt", *given, "--out", "new.pt"]) == 0
    found, edit = load("new.pt"), Edit(("task1",), 1.5, ("second.*",))
    expected = edited(artifact, suite, edit)
    assert all(torch.equal(found.merged[name], value) for name, value in expected.merged.items())
    assert found.used == {"validation": 4}
    printed = capsys.readouterr().out
    assert "mean over tasks" in printed
    assert printed.endswith("new.pt: out.pt, without task1, scaled by 1.5, second.* back at θ_0\n")


def test_it_is_a_command_of_merging_and_merge_pays_for_candidates_too(made):
    assert merge_command.main(["edit", "out.pt", "--out", "same.pt", "--no-table"]) == 0
    assert torch.equal(load("same.pt").merged["first.weight"], made[1].merged["first.weight"])
    assert load("same.pt").used == {}
    arguments = ["--method", "average", "--suite", "toy", "--candidates", "3", "--out", "a.pt", "--no-table"]
    assert merge_command.main(arguments) == 0
    assert load("a.pt").used == {"validation": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "--out", "new.pt"], "artifact none.pt: expected a file"),
        (["out.pt", "--out", "out.pt"], "--out out.pt: expected another file"),
        (["out.pt", "--without", "nix", "--out", "new.pt"], "expert: expected task0"),
        (["out.pt", "--candidates", "0", "--out", "new.pt"], "candidates: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_two(made, arguments, message, capsys, tmp_path):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pt"]
