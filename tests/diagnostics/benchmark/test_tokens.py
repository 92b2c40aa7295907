"""The cost of coarsened events: both passes are timed, and what is kept is counted by hand."""

import json

import pytest

from diagnostics.benchmark.__main__ import main

pytest.importorskip("transformers")
SMALL = ["--vocabulary", "50", "--width", "8", "--layers", "1", "--length", "4", "--batch", "2", "--repeats", "1"]


def test_a_small_network_is_measured(capsys):
    assert main(["tokens", *SMALL, "--top-k", "3", "50", "--objectives", "kl", "entropy", "--json-out", "-"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert [(cost["k"], cost["objective"]) for cost in costs] == [(k, o) for k in (3, 50) for o in ("kl", "entropy")]
    assert costs[0]["teacher_bytes"] == 2 * 4 * (4 * 4 + 3 * 4), "k + 1 float32 numbers and k int32 of each position"
    assert costs[2]["teacher_bytes"] == costs[2]["scores_bytes"] == 4 * 2 * 4 * 50
    assert all(cost["ratio"] > 0 and cost["own_seconds"] > 0 for cost in costs)
    assert main(["tokens", *SMALL, "--top-k", "3"]) == 0
    assert "V = 50, 2 x 4 tokens" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_objective_is_refused(capsys):
    assert main(["tokens", *SMALL, "--objectives", "huber"]) == 2
    assert "objective: expected kl or" in capsys.readouterr().err
