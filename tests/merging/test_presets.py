"""Presets: the published code's trajectory, the SAM that acts, the command line."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bounds.types import InputError
from merging import learned, merge, presets
from merging.artifact import load
from merging.commands.merge import main
from merging.learned import LearnedSettings
from merging.methods import METHODS
from merging.suites import toy

STEPS = 60


def published_code(suite, inputs, steps):
    """SAMerging as it was released, in a few lines: λ is the leaf, every task's loss is back-propagated undivided."""
    base, deltas = suite.task_vectors.base, suite.task_vectors.deltas
    coefficients = torch.zeros(len(deltas), len(base), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([coefficients], lr=1e-3, weight_decay=5e-4)
    for step in range(steps):
        merge = {
            name: value + sum(coefficients[t, i] * delta[name] for t, delta in enumerate(deltas))
            for i, (name, value) in enumerate(base.items())
        }
        adam.zero_grad()
        for t, task in enumerate(suite.tasks):
            batch = inputs[t][[(16 * step + i) % len(inputs[t]) for i in range(16)]]
            expert = {name: value + deltas[t][name] for name, value in base.items()}
            teacher = (task.forward(expert, batch) / 2).softmax(dim=1)
            student = (task.forward(merge, batch) / 2).softmax(dim=1)
            F.kl_div(student.log(), teacher, reduction="batchmean").backward(retain_graph=True)
        adam.step()
    return coefficients.detach()


def run(preset, **settings):
    suite = toy.build(overlap=0.4)
    settings = {**presets.find("samerging", preset).settings, "steps": STEPS, **settings}
    made = merge("samerging", suite.task_vectors, suite.tasks, **settings)
    assert made.coefficients is not None
    return suite, made, made.coefficients


def test_released_is_the_published_codes_trajectory():
    suite, made, coefficients = run("released")
    problem = learned.prepare(
        suite.task_vectors, suite.tasks, LearnedSettings(**presets.find("samerging", "released").settings)
    )
    expected = published_code(suite, problem.inputs, STEPS)
    assert float(expected.abs().max()) > 0.04
    assert torch.allclose(coefficients, expected, atol=1e-12)
    assert made.history["perturbation_norm"] == [0.0] * STEPS


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.0},
        {"reduction": "mean"},
        {"temperature": 1.0},
        {"init": 0.1},
        {"batch": 8},
        {"perturbation": "weights"},
    ],
)
def test_every_setting_of_released_matters(change):
    _, _, coefficients = run("released")
    _, _, other = run("released", **change)
    assert float((coefficients - other).abs().max()) > 1e-8, "the trajectory is compared at 1e-12"


def test_the_papers_perturbation_is_exactly_0_in_the_first_step_and_acts_afterwards():
    _, paper, coefficients = run("paper")
    _, _, released = run("released")
    norms = paper.history["perturbation_norm"]
    assert norms[0] == 0.0
    assert all(norm > 0 for norm in norms[1:])
    largest = float(coefficients.abs().max())
    assert max(norms) <= 0.07 * largest * 1.5, "of the order of rho times the coefficients"
    assert not torch.equal(coefficients, released)


def test_the_clamp_keeps_coefficients_between_0_and_1():
    settings = {**presets.find("adamerging", "paper").settings, "steps": 4, "init": 0.99, "learning_rate": 0.05}
    suite = toy.build(overlap=0.4)
    found = merge("adamerging", suite.task_vectors, suite.tasks, **settings).coefficients
    free = merge("adamerging", suite.task_vectors, suite.tasks, **{**settings, "clamp": False}).coefficients
    assert found is not None
    assert free is not None
    assert 0 <= float(found.min()) <= float(found.max()) == 1.0 < float(free.max())


def test_cached_batches_come_round_again():
    suite = toy.build(overlap=0.4)
    settings = LearnedSettings(examples=24, batch=5, cached=3, perturbation="none")
    problem = learned.prepare(suite.task_vectors, suite.tasks, settings)
    seen: list[Any] = []

    def noting(forward):
        return lambda params, x: seen.append(x) or forward(params, x)

    problem = replace(problem, forwards=[noting(f) for f in problem.forwards])
    state = learned.init(problem)
    for _ in range(6):
        learned.update(problem, state)
    first, inputs = [seen[3 * step] for step in range(6)], problem.inputs[0]
    assert isinstance(inputs, torch.Tensor)
    assert torch.equal(torch.cat(first[:3]), inputs[:15])
    assert all(torch.equal(first[i], first[i + 3]) for i in range(3))


@pytest.mark.parametrize("method", presets.PRESETS)
def test_presets_are_settings_of_their_method(method):
    for name, preset in presets.PRESETS[method].items():
        METHODS[method].settings(**preset.settings)
        assert preset.note
        assert presets.find(method, name) is preset


def test_unknown_presets_are_refused():
    with pytest.raises(InputError, match="preset of samerging: expected released or paper"):
        presets.find("samerging", "best")
    with pytest.raises(InputError, match="preset of average: expected none"):
        presets.find("average", "paper")


def test_the_command_takes_a_preset_and_options_override_it(tmp_path, capsys):
    out = tmp_path / "out.pt"
    options = ["--suite", "toy", "--out", str(out), "--steps", "3", "--rho", "0.2"]
    assert main(["--method", "samerging", "--preset", "paper", *options]) == 0
    settings = load(out).settings
    assert (settings["steps"], settings["rho"]) == (3, 0.2)
    assert (settings["init"], settings["weight_decay"], settings["cached"]) == (0.0, 5e-4, 100)
    shown = capsys.readouterr().out
    assert "preset paper" in shown
    assert "calibration split" in shown
    assert "perturbation exactly 0 in 1 of 3 steps" in shown
    assert main(["--preset", "best"]) == 2
    assert "expected released or paper" in capsys.readouterr().err


def test_help_shows_presets_and_settings(capsys):
    texts = {}
    for method in ("adamerging", "adamerging++"):
        with pytest.raises(SystemExit):
            main(["--method", method, "--help"])
        texts[method] = " ".join(capsys.readouterr().out.split())
    assert "--preset" in texts["adamerging"]
    assert "released" in texts["adamerging"]
    assert "--preset" not in texts["adamerging++"], "it has none"
    for text in ("--density", "Share of each task vector", "--objective", "jensen-shannon"):
        assert text in texts["adamerging++"]
