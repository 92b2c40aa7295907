"""A learned merge whose passes run on another device: the same coefficients, and no tensor left behind on the CPU."""

import pytest
import torch

from merging import METHODS, merge
from merging.execution import Execution
from merging.suites import toy
from tests.elsewhere import elsewhere
from tests.joined import together

SETTINGS = {"steps": 3, "examples": 8}
PERTURBATIONS = ["coefficients", "weights", "random-weights"]


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_passes_on_another_device_learn_the_same(perturbation):
    suite = toy.build(overlap=0.5)
    settings = {**SETTINGS, "perturbation": perturbation}
    expected = merge("samerging", suite.task_vectors, suite.tasks, **settings)
    with elsewhere() as device:
        there = merge("samerging", suite.task_vectors, suite.tasks, execution=Execution(device=device), **settings)
        coefficients, weights = there.coefficients, there.merged
    assert expected.coefficients is not None
    assert coefficients is not None
    assert coefficients.device.type == "cpu"
    assert torch.allclose(coefficients, expected.coefficients, atol=1e-12)
    assert all(torch.allclose(weights[name], expected.merged[name]) for name in weights)


ROWS = [name for name, row in METHODS.items() if row.executes]
CASES = [*(("samerging", perturbation) for perturbation in PERTURBATIONS), *((name, "none") for name in ROWS)]


@pytest.mark.parametrize(("size", "sharded"), [(2, False), (2, True), (3, True)])
def test_several_processes_on_another_device_learn_the_same(size, sharded):
    """Whole weights in each, or parts: then both maps run on the CPU, θ goes up and ∇_θ comes down."""
    suite = toy.build(overlap=0.5)

    def learned(**execution):
        found = []
        for method, perturbation in CASES:
            settings = {**SETTINGS, "perturbation": perturbation, "execution": Execution(**execution)}
            made = merge(method, suite.task_vectors, suite.tasks, **settings)
            found.append(({name: value.tolist() for name, value in made.merged.items()}, made.history["loss"]))
        return found

    def work(joined):
        with elsewhere() as device:
            return learned(device=device, processes=joined, sharded=sharded)

    expected = learned()
    for found in together(work, size):
        for case, (weights, losses), (alone, known) in zip(CASES, found, expected, strict=True):
            assert losses == pytest.approx(known, abs=1e-9), case
            for name, value in alone.items():
                assert torch.allclose(torch.tensor(weights[name]), torch.tensor(value), atol=1e-6), case
