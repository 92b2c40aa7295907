"""A learned merge whose passes run on another device: the same coefficients, and no tensor left behind on the CPU."""

import pytest
import torch

from merging import merge
from merging.execution import Execution
from merging.suites import toy
from tests.elsewhere import elsewhere


@pytest.mark.parametrize("perturbation", ["coefficients", "weights", "random-weights"])
def test_passes_on_another_device_learn_the_same(perturbation):
    suite = toy.build(overlap=0.5)
    settings = {"steps": 3, "examples": 8, "perturbation": perturbation}
    expected = merge("samerging", suite.task_vectors, suite.tasks, **settings)
    with elsewhere() as device:
        there = merge("samerging", suite.task_vectors, suite.tasks, execution=Execution(device=device), **settings)
        coefficients, weights = there.coefficients, there.merged
    assert expected.coefficients is not None
    assert coefficients is not None
    assert coefficients.device.type == "cpu"
    assert torch.allclose(coefficients, expected.coefficients, atol=1e-12)
    assert all(torch.allclose(weights[name], expected.merged[name]) for name in weights)
