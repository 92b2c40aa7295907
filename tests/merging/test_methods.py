"""The table of methods and the function that runs a row; the laws of every row are in test_laws.py."""

import pytest

from bounds.types import InputError
from merging import merge
from merging.suites import toy
from merging.task import mean_accuracy


def test_task_arithmetic_takes_the_best_scale_of_its_grid():
    suite = toy.build(overlap=0.6)
    found = merge("task_arithmetic", suite.task_vectors, suite.tasks)
    history = found.history
    assert found.coefficients is not None
    best = max(history["validation_accuracy"])
    chosen = history["scale"][history["validation_accuracy"].index(best)]
    assert float(found.coefficients[0, 0]) == chosen
    assert mean_accuracy(suite.tasks, found.merged, "validation") == pytest.approx(best)


def test_unknown_methods_and_settings_are_refused():
    suite = toy.build()
    with pytest.raises(InputError, match="method: expected average or"):
        merge("magic", suite.task_vectors, suite.tasks)
    with pytest.raises(InputError, match="setting of average"):
        merge("average", suite.task_vectors, suite.tasks, rho=1.0)
    with pytest.raises(InputError, match="scale"):
        merge("task_arithmetic", suite.task_vectors, suite.tasks, scale=float("nan"))
