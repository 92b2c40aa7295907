"""The curve of KL against passes: counts, what is written, refusals."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from diagnostics import solver_curve
from diagnostics.solver_curve import Curve, calibration_kl, measure, reached
from merging import learned
from merging.learned import LearnedSettings
from merging.suites import toy


def test_passes_of_samerging_are_counted_and_its_kl_is_that_of_all_examples():
    suite = toy.build(overlap=0.5)
    settings = LearnedSettings(steps=130, batch=4, examples=8)
    curve = measure(suite, "sam", settings)
    assert curve.passes[:3] == [0, 3 * 2 * 3 * 4, 6 * 2 * 3 * 4]
    assert curve.passes[-1] == 130 * 2 * 3 * 4
    problem = learned.prepare(suite.task_vectors, suite.tasks, settings)
    state = learned.init(problem)
    assert curve.kl[0] == pytest.approx(calibration_kl(problem, state.coefficients.detach()))
    for _ in range(130):
        learned.update(problem, state)
    every = learned.evaluate(problem, state.coefficients, [torch.arange(8)] * 3).losses.mean()
    assert curve.kl[-1] == pytest.approx(float(every))
    assert curve.seconds == sorted(curve.seconds)


def test_reached_is_the_first_time():
    curve = Curve(label="", settings={}, passes=[0.0, 10.0, 20.0, 30.0], kl=[1.0, 0.5, 0.6, 0.4], seconds=[0.0] * 4)
    assert [reached(curve, kl) for kl in (0.5, 0.45, 0.1)] == [10.0, 30.0, None]


def test_the_command_writes_curve_and_figures(tmp_path, capsys):
    assert solver_curve.main(["--suite", "toy", "--out", str(tmp_path), "--steps", "5", "--examples", "8"]) == 0
    content = json.loads((tmp_path / "solver_curve.json").read_text())
    labels = [curve["label"] for curve in content["curves"]]
    assert {"samerging, no perturbation", "samerging, default perturbation", "gauss_newton", "tangent"} <= set(labels)
    assert all(len(c["passes"]) == len(c["kl"]) == len(c["seconds"]) > 1 for c in content["curves"])
    assert ElementTree.parse(tmp_path / "solver_curve.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "solver_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "gauss_newton" in capsys.readouterr().out


def test_bad_options_are_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "new"
    assert solver_curve.main(["--suite", "toy", "--out", str(out), "--steps", "0"]) == 2
    assert solver_curve.main(["--suite", "nowhere", "--out", str(out)]) == 2
    assert "steps: expected at least 1" in capsys.readouterr().err
    assert not out.exists()
