"""What a merge leaves alone: patterns, running statistics, whole weights and coefficients afterwards."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from bounds.autodiff import functional
from bounds.running_statistics import entries, is_statistic, reestimated
from bounds.types import InputError, Sample, leaves
from merging import Selection, TaskVectors, artifact, merge, merged, suite_from_modules
from merging.params import norm, subtract
from merging.suites import Suite
from merging.task import score_task

METHODS = ("average", "task_arithmetic", "ties", "fisher", "regmean", "samerging", "gauss_newton")
SETTINGS: dict[str, Any] = {
    "task_arithmetic": {"scale": 0.4},
    "ties": {"scale": 0.5},
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
    "samerging": {"examples": 8, "steps": 3, "batch": 4, "granularity": "tensor"},
    "gauss_newton": {"examples": 8, "iterations": 2},
}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    normalisation = nn.BatchNorm1d(6)
    nn.init.normal_(normalisation.weight)
    nn.init.normal_(normalisation.bias)
    net = nn.Sequential(nn.Linear(4, 6), normalisation, nn.Tanh(), nn.Linear(6, 3)).double()
    for _ in range(5):
        net(torch.randn(40, 4).double() * (1 + seed) + seed)
    return net.eval()


def world() -> Suite:
    generator = torch.Generator().manual_seed(0)

    def sample(shift: float) -> Sample:
        x = torch.randn(30, 4, generator=generator, dtype=torch.float64) + shift
        return Sample(x, torch.randint(0, 3, (30,), generator=generator))

    splits = ("train", "calibration", "validation", "test")
    data = {name: {split: sample(i) for split in splits} for i, name in enumerate(("one", "two"))}
    return suite_from_modules(network(0), {"one": network(1), "two": network(2)}, data)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_stays_and_everything_else_is_merged(method):
    suite = world()
    chosen = Selection(excluding=("0.*",), statistics="base")
    found = merge(method, suite, selection=chosen, **SETTINGS.get(method, {}))
    base = suite.task_vectors.base
    assert list(found.merged) == list(base)
    for name, value in found.merged.items():
        stays = name.startswith("0.") or is_statistic(name)
        assert not stays or torch.equal(value, base[name]), name
    assert not torch.equal(found.merged["3.weight"], base["3.weight"])
    assert found.selection == {"only": [], "except": ["0.*"], "running_statistics": "base"}
    only = merge(
        method, suite, selection=Selection(only=("1.[wb]*", "3.*"), statistics="base"), **SETTINGS.get(method, {})
    )
    torch.testing.assert_close(dict(only.merged), dict(found.merged))


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_describe_the_whole_merge(method, tmp_path):
    suite = world()
    found = merge(method, suite, selection=Selection(excluding=("0.bias",)), **SETTINGS.get(method, {}))
    averaged = {n: v for n, v in found.merged.items() if is_statistic(n)}
    for name, value in averaged.items():
        torch.testing.assert_close(value, sum(suite.task_vectors.expert(t)[name] for t in (0, 1)) / 2)
    if found.coefficients is not None and found.blocks is not None:
        assert dict(found.blocks)["running statistics"] == tuple(averaged)
        torch.testing.assert_close(merged(suite.task_vectors, found.coefficients, found.blocks), dict(found.merged))
        assert float(found.coefficients[:, -2].abs().max()) == 0.0, "kept at θ_0"
    artifact.save(found, tmp_path / "out.pt")
    assert artifact.load(tmp_path / "out.pt").selection == found.selection


def test_the_teacher_is_the_whole_expert():
    """Its own biases are left out of the merge; its scores, to which the merge is fitted, are those of all of it."""
    suite = world()
    steps: dict[str, Any] = {"examples": 30, "steps": 0, "batch": 30}
    everything = merge("samerging", suite, selection=Selection(statistics="base"), init=0.0, **{**steps, "steps": 1})
    left_out = merge(
        "samerging",
        suite,
        selection=Selection(excluding=("3.*",), statistics="base"),
        init=0.0,
        **{**steps, "steps": 1},
    )
    assert left_out.history["loss"][0] == pytest.approx(everything.history["loss"][0], rel=1e-12), "both start at θ_0"


def test_statistics_are_estimated_again_on_calibration_examples():
    suite = world()
    found = merge("average", suite, selection=Selection(statistics="calibration"))
    assert found.coefficients is None
    assert found.used == {"calibration": None}
    plain = merge("average", suite)
    joined = torch.cat([leaves(task.calibration.inputs)[0] for task in suite.tasks])
    shuffled = reestimated(functional(network(0))[0], plain.merged, joined)  # the order of examples does not matter
    torch.testing.assert_close(dict(found.merged), shuffled)
    assert norm(subtract(found.merged, plain.merged)) > 0.1


def test_statistics_can_be_merged_like_weights():
    suite = world()
    found = merge("task_arithmetic", suite, selection=Selection(statistics="merged"), scale=0.4)
    name = "1.running_log_variance"
    total = sum(delta[name] for delta in suite.task_vectors.deltas)
    torch.testing.assert_close(found.merged[name], suite.task_vectors.base[name] + 0.4 * total)
    assert found.blocks is not None
    assert "running statistics" not in found.blocks


def test_an_expert_scores_as_its_own_module_does():
    suite = world()
    for index, task in enumerate(suite.tasks):
        own = network(index + 1)(task.test.inputs)
        torch.testing.assert_close(
            score_task(task, suite.task_vectors.expert(index), task.test.inputs, "test", ""), own
        )
        cut = suite.task_vectors.restricted(["3.weight"])
        assert cut.expert(index).keys() == suite.task_vectors.base.keys()


def test_experts_in_files_are_restricted_too():
    suite = world()
    experts = {name: suite.task_vectors.expert(i) for i, name in enumerate(suite.task_vectors.names)}
    lazy = TaskVectors.on_demand(suite.task_vectors.base, experts)
    for method in ("average", "samerging"):
        chosen = {"selection": Selection(excluding=("0.*",)), **SETTINGS.get(method, {})}
        one, two = (merge(method, vectors, suite.tasks, **chosen) for vectors in (lazy, suite.task_vectors))
        torch.testing.assert_close(dict(one.merged), dict(two.merged))


@pytest.mark.parametrize(
    ("selection", "match"),
    [
        (
            {"only": ("encoder.*",)},
            r"pattern 'encoder.\*': expected one that names a tensor of the model; got none; use",
        ),
        ({"excluding": ("*",)}, "selection: expected something to merge"),
        ({"statistics": "mean"}, "running statistics: expected average or base or calibration or merged; got 'mean'"),
    ],
)
def test_selections_are_refused(selection, match):
    with pytest.raises(InputError, match=match):
        merge("average", world(), selection=Selection(**selection))


def test_calibration_inputs_of_different_shapes_are_refused():
    suite = world()
    task = suite.tasks[1]
    other = task.changed(calibration=Sample(torch.zeros(30, 5)))
    suite = dataclasses.replace(suite, tasks=[suite.tasks[0], other])
    with pytest.raises(InputError, match="calibration inputs of all tasks: expected one shape"):
        merge("average", suite, selection=Selection(statistics="calibration"))


def test_entries_are_the_ones_of_the_module():
    assert list(world().task_vectors.base) == list(entries(network(0)))
