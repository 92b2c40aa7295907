"""Which calibration inputs count as unused, how splits drawn by class are told, and why those are not used."""

import dataclasses

import numpy as np
import pytest
import torch

from bounds.certificates import BoundedSample, Constants, weighted_mean
from diagnostics.sections.evidence import PILOT, calibration_use, drawn_by_class
from merging import METHODS, merge
from merging.suites import toy


@pytest.fixture(scope="module")
def suite():
    return toy.build()


def positions(parts):
    return [set(p.tolist()) for p in parts]


def test_what_a_merge_used_is_its_pilot_and_the_rest_is_free(suite):
    """Against the inputs themselves: a merge that is handed only its pilot's inputs comes out the same."""
    sizes = [len(task.calibration) for task in suite.tasks]
    made = merge("regmean+svc", suite, examples=8)
    use = calibration_use(made, sizes, 0, by_class=False)
    assert [len(p) for p in use.pilot] == [8] * len(sizes)
    for pilot, free, size in zip(positions(use.pilot), positions(use.free), sizes, strict=True):
        assert pilot | free == set(range(size))
        assert not pilot & free
    spoilt = []
    for task, free in zip(suite.tasks, use.free, strict=True):
        inputs = task.calibration.inputs.clone()
        inputs[free] = torch.nan
        spoilt.append(task.changed(calibration=dataclasses.replace(task.calibration, inputs=inputs)))
    again = merge("regmean+svc", suite.task_vectors, spoilt, examples=8)
    assert all(torch.equal(again.merged[name], value) for name, value in made.merged.items())


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if "calibration" in row.needs])
def test_every_method_that_looks_at_calibration_inputs_is_known(suite, method):
    sizes = [len(task.calibration) for task in suite.tasks]
    settings = dataclasses.asdict(METHODS[method].settings())
    average = merge("average", suite)
    said = dataclasses.replace(average, method=method, used={"calibration": None}, settings={**settings, "examples": 8})
    assert [len(p) for p in calibration_use(said, sizes, 0, by_class=False).pilot] == [8] * len(sizes)


def test_where_it_is_not_known_what_was_used_nothing_is_free(suite):
    sizes = [len(task.calibration) for task in suite.tasks]
    made = merge("regmean", suite, examples=8)
    unused = calibration_use(merge("average", suite), sizes, 0, by_class=False)
    assert [len(p) + len(f) for p, f in zip(unused.pilot, unused.free, strict=True)] == sizes
    assert max(map(len, unused.pilot)) <= PILOT
    for artifact, by_class, words in (
        (dataclasses.replace(made, used=None), False, "not known"),
        (dataclasses.replace(made, settings={}), False, "not known"),
        (dataclasses.replace(made, method="somebody's own"), False, "not known"),
        (dataclasses.replace(made, then={"somebody's own": {}}), False, "not known"),
        (dataclasses.replace(made, selection={"running_statistics": "calibration"}), False, "not known"),
        (made, True, "class by class"),
        (dataclasses.replace(made, settings={"examples": None, "seed": 0}), False, "all calibration inputs"),
    ):
        use = calibration_use(artifact, sizes, 0, by_class=by_class)
        assert words in use.why_not
        assert not any(map(len, use.free))
        assert all(map(len, use.pilot))


def test_splits_drawn_by_class_are_told_from_splits_drawn_by_chance():
    generator = torch.Generator().manual_seed(0)
    even = [torch.arange(200) % 10, torch.arange(156) % 2]
    large = [torch.arange(1000) % 10, torch.arange(312) % 2]
    assert drawn_by_class(even, large)
    told = 0
    for _ in range(60):
        chance = [torch.randint(k, (n,), generator=generator) for k, n in ((10, 200), (2, 156), (3, 69))]
        other = [torch.randint(k, (n,), generator=generator) for k, n in ((10, 1000), (2, 312), (3, 138))]
        told += drawn_by_class(chance, other)
    assert told <= 4


def test_what_is_left_of_a_split_drawn_by_class_would_break_the_limit():
    """A merge can depend on which classes it took more of; (15) with the rest, whose shares are then others, misses."""
    generator, n, rounds = np.random.default_rng(0), 100, 200
    constants, missed = Constants(0.49, (0.0,), 1.0, (0.5,)), np.zeros(2)
    for _ in range(rounds):
        pool = generator.permutation(np.repeat(np.arange(10), 40))
        used, left = pool[:300], pool[300:]
        chosen = np.bincount(used, minlength=10).argsort()[5:]  # g marks the five classes of which more was used

        def marked(labels, chosen=chosen):
            return torch.from_numpy(1.0 * np.isin(labels, chosen))

        labelled = marked(np.arange(n) % 10)
        for which, others in enumerate((left, generator.integers(0, 10, len(left)))):
            sample = BoundedSample(values=labelled, predicted=labelled, unlabelled=marked(others))
            missed[which] += weighted_mean([sample], (1.0,), 0.05, constants).value < 0.5
    assert missed[0] > 2 * 0.05 * rounds
    assert missed[1] <= 0.05 * rounds  # inputs that were drawn afresh
