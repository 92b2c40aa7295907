"""A setting that is said to be idle changes nothing, and one that is not does, for every perturbation and average."""

import pytest
import torch

from merging import merge
from merging.learned import DECIDING, LearnedSettings, idle
from merging.learned.optimizers import AVERAGES
from merging.learned.perturbations import PERTURBATIONS
from merging.rows import NoSettings
from merging.suites import toy

CHANGED = {"rho": 0.3, "penalty": 0.5, "every": 2, "average_decay": 0.5}
"""Settings that some values do not read -> another value than the default."""


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


def learned(suite, **settings):
    made = merge("samerging", suite, steps=4, examples=8, batch=4, **settings)
    assert made.coefficients is not None
    return made.coefficients


VALUES = [{"perturbation": name} for name in PERTURBATIONS] + [{"average": name} for name in ("none", *AVERAGES)]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: "-".join(values.values()))
def test_idle_settings_are_those_that_change_nothing(values, suite):
    plain, found = learned(suite, **values), idle(LearnedSettings(**values))
    for name, value in CHANGED.items():
        same = torch.equal(plain, learned(suite, **values, **{name: value}))
        assert same == (name in found), name


def test_the_one_that_decides_is_named():
    found = idle(LearnedSettings(perturbation="none"))
    assert found == {name: "average" if name == "average_decay" else "perturbation" for name in CHANGED}
    assert set(found.values()) == set(DECIDING)
    assert idle(NoSettings()) == {}
