"""Paired errors of accuracies: closed forms, and coverage on simulated examples and seeds whose truth is known."""

import math

import pytest
import torch
from scipy import stats

from bounds.types import Estimate, InputError
from merging.commands import paired

REPEATS = 800


def normal(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def draw(generator, *, seeds, sizes, shift, paired_seeds=False, seed_noise=0.3, rest=0.6):
    """Correctness of two rows on examples of each task, per seed, and the true difference of their mean accuracies.

    An example is right where its ease plus what the seed and the pair of both add is above a threshold. The second row
    draws nothing unless ``paired_seeds``: then its seeds add what those of the first row add.
    """
    first, second, truth = [], [], 0.0
    z = seed_noise * torch.randn(seeds, 1, generator=generator)
    for index, size in enumerate(sizes):
        ease, own = (scale * torch.randn(size, generator=generator) for scale in (1.0, 0.4))
        level, spread = 0.3 * index, math.sqrt(1 + seed_noise**2 + rest**2)
        both = z + rest * torch.randn(seeds, size, generator=generator)
        first.append((ease + both + level + shift > 0).double())
        if paired_seeds:
            again = z + rest * torch.randn(seeds, size, generator=generator)
            second.append((ease + again + level > 0).double())
            truth += (normal((level + shift) / spread) - normal(level / spread)) / len(sizes)
        else:
            second.append((ease + own + level > 0).double()[None])
            truth += (normal((level + shift) / spread) - normal(level / math.sqrt(1 + 0.4**2))) / len(sizes)
    return first, second, truth


WORLDS = {
    "one seed": {"seeds": 1, "sizes": (150, 80, 40), "shift": 0.2, "seed_noise": 0.0},
    "seeds of one row": {"seeds": 8, "sizes": (150, 80, 40), "shift": 0.1},
    "seeds of both rows": {"seeds": 8, "sizes": (150, 80), "shift": 0.1, "paired_seeds": True, "seed_noise": 0.3},
    "seeds that change examples alone": {
        "seeds": 8,
        "sizes": (60, 40),
        "shift": 0.05,
        "paired_seeds": True,
        "seed_noise": 0.0,
        "rest": 2.0,
    },
}


def coverage(world, error=paired.difference):
    """Share of simulations whose interval of two standard errors holds the truth."""
    generator, held = torch.Generator().manual_seed(1), 0
    for _ in range(REPEATS):
        first, second, truth = draw(generator, **WORLDS[world])
        found = error(first, second)
        held += abs(found.value - truth) <= 2 * found.stderr
    return held / REPEATS


@pytest.mark.parametrize("world", WORLDS)
def test_two_standard_errors_hold_the_true_difference_as_often_as_they_say(world):
    assert 0.925 <= coverage(world) <= 0.975


def without_pairing(first, second):
    one, other = paired.estimate(first), paired.estimate(second)
    return Estimate(one.value - other.value, math.hypot(one.stderr, other.stderr))


def without_seeds(first, second):
    averaged = [[v.mean(dim=0, keepdim=True) for v in row] for row in (first, second)]
    return paired.difference(*averaged)


def with_the_rest_twice(first, second):
    values = [a - b for a, b in zip(first, second, strict=True)]
    means = torch.stack([v.mean(dim=1) for v in values]).mean(dim=0)
    examples = without_seeds(first, second)
    return Estimate(examples.value, math.hypot(examples.stderr, float(means.std()) / math.sqrt(len(means))))


@pytest.mark.parametrize(
    ("world", "wrong"),
    [
        ("one seed", without_pairing),
        ("seeds of both rows", without_pairing),
        ("seeds of one row", without_seeds),
        ("seeds that change examples alone", with_the_rest_twice),
    ],
)
def test_errors_that_leave_something_out_do_not(world, wrong):
    assert not 0.925 <= coverage(world, wrong) <= 0.975


def test_the_gain_covers_too_and_is_paired():
    generator, held = torch.Generator().manual_seed(2), 0
    levels = {"pretrained": -0.3, "row": 0.2, "experts": 0.6}
    spread = math.sqrt(1.25)
    truth = (normal(0.2 / spread) - normal(-0.3 / spread)) / (normal(0.6 / spread) - normal(-0.3 / spread))
    for _ in range(REPEATS):
        ease = torch.randn(2, 150, generator=generator)
        rows = {}
        for name, level in levels.items():
            right = (ease + 0.5 * torch.randn(2, 150, generator=generator) + level > 0).double()
            rows[name] = [task[None] for task in right]
        found = paired.gain(rows["row"], rows["pretrained"], rows["experts"])
        assert found is not None
        held += abs(found.value - truth) <= 2 * found.stderr
    assert 0.925 <= held / REPEATS <= 0.975


def test_closed_forms():
    a = [torch.tensor([[1.0, 1, 1, 0]]).double(), torch.tensor([[1.0, 0]]).double()]
    b = [torch.tensor([[1.0, 0, 0, 0]]).double(), torch.tensor([[1.0, 1]]).double()]
    found = paired.difference(a, b)
    assert found.value == pytest.approx((0.5 - 0.5) / 2)
    assert found.stderr == pytest.approx(math.sqrt((1 / 3 / 4 + 0.5 / 2) / 4))
    assert found.n == 6
    same = paired.difference(a, a)
    assert (same.value, same.stderr) == (0.0, 0.0)
    shifts = [torch.tensor([[0.0, 0], [1, 1]]).double()]  # seeds alone differ: the error is theirs
    assert paired.estimate(shifts).stderr == pytest.approx(math.sqrt(0.5 / 2))
    assert paired.estimate([torch.ones(1, 1).double()]).stderr == math.inf


def test_the_gain_of_the_references_is_exact_and_without_room_there_is_none():
    low = [torch.tensor([[1.0, 0, 0, 0]]).double()]
    high = [torch.tensor([[1.0, 0, 1, 1]]).double()]
    for row, value in ((low, 0.0), (high, 1.0)):
        found = paired.gain(row, low, high)
        assert found is not None
        assert (found.value, found.stderr) == (value, 0.0)
    assert paired.gain(low, high, high) is None
    assert paired.gain(low, high, low) is None


@pytest.mark.parametrize(
    ("value", "error", "apart"), [(0.0, 0.0, False), (0.1, 0.06, False), (-0.1, 0.05, True), (0.1, math.inf, False)]
)
def test_told_apart_from_two_standard_errors_on(value, error, apart):
    assert paired.told_apart(Estimate(value, error)) is apart


@pytest.mark.parametrize("shape", [(40,), (30, 12)])
def test_the_p_value_of_one_seed_is_students(shape):
    """Of one task the paired t-test; of two the statistic with Satterthwaite's degrees of freedom, as Welch's test."""
    generator = torch.Generator().manual_seed(3)
    first, second = ([(torch.rand(1, n, generator=generator) < p).double() for n in shape] for p in (0.8, 0.5))
    found = paired.p_value(first, second)
    gaps = [(a - b)[0].numpy() for a, b in zip(first, second, strict=True)]
    if len(shape) == 1:
        _, expected = stats.ttest_rel(first[0][0], second[0][0])
    else:
        _, expected = stats.ttest_ind(gaps[0], -gaps[1], equal_var=False)  # the sum of means is 0
    assert found == pytest.approx(expected, rel=1e-9)
    assert paired.p_value(second, first) == found


def test_the_p_value_is_no_less_than_signs_can_say():
    right, wrong = torch.ones(1, 6).double(), torch.zeros(1, 6).double()
    assert paired.p_value([right], [wrong]) == 2**-5
    half = torch.tensor([[1.0, 1, 1, 0, 0, 0]]).double()
    assert paired.p_value([half], [wrong]) == 2**-2, "Student's t is 2.24 and would say 0.076"
    assert paired.p_value([right], [right]) == 1.0
    assert paired.p_value([right[:, :1]], [wrong[:, :1]]) == 1.0
    balanced = torch.tensor([[0.0, 0, 0, 1, 1, 1]]).double()
    assert paired.p_value([half], [balanced]) == 1.0


NULLS = {
    "one seed": {**WORLDS["one seed"], "shift": 0.0, "paired_seeds": True},
    "two seeds that vary": {"seeds": 2, "sizes": (150, 80), "shift": 0.0, "paired_seeds": False, "seed_noise": 0.5},
    "three seeds that vary": {"seeds": 3, "sizes": (150, 80), "shift": 0.0, "paired_seeds": False, "seed_noise": 0.5},
    "five seeds of both": {"seeds": 5, "sizes": (60, 40), "shift": 0.0, "paired_seeds": True, "seed_noise": 0.3},
}


def rejected(world, p_of):
    """Share of simulations of two rows of equal accuracy that a test at 5 % tells apart.

    Where one row alone has seeds, its threshold is moved so that both are right equally often.
    """
    generator, count, options = torch.Generator().manual_seed(4), 0, dict(NULLS[world])
    if not options["paired_seeds"]:
        options["sizes"] = options["sizes"][:1]  # of level 0: both rows are right in half of the cases
    for _ in range(REPEATS):
        first, second, truth = draw(generator, **options)
        assert abs(truth) < 1e-12
        count += p_of(first, second) <= 0.05
    return count / REPEATS


@pytest.mark.parametrize("world", NULLS)
def test_equal_rows_are_told_apart_no_more_often_than_the_level(world):
    assert rejected(world, paired.p_value) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPEATS)


def normal_p(first, second):
    found = paired.difference(first, second)
    return 2 * (1 - normal(abs(found.value) / found.stderr)) if found.stderr else 1.0


def one_t(first, second):
    """One t with Satterthwaite's degrees of freedom, as Welch's test has it."""
    gap = first[0] - second[0]
    examples, seeds = float(gap.mean(dim=0).var()) / gap.shape[1], float(gap.mean(dim=1).var()) / len(gap)
    freedom = (examples + seeds) ** 2 / (examples**2 / (gap.shape[1] - 1) + seeds**2 / (len(gap) - 1))
    return 2 * stats.t.sf(abs(float(gap.mean())) / math.sqrt(examples + seeds), freedom)


@pytest.mark.parametrize("wrong", [normal_p, one_t])
def test_with_a_normal_or_one_t_they_are(wrong):
    assert rejected("two seeds that vary", wrong) > 0.09


def test_holm_rejects_step_by_step():
    """Against the rule as it is written: compare the i-th smallest with level / (T - i), stop at the first above."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        p = (torch.rand(5, generator=generator) ** 4).tolist()
        rejected, level = set(), 0.05
        for rank, index in enumerate(sorted(range(5), key=p.__getitem__)):
            if p[index] > level / (5 - rank):
                break
            rejected.add(index)
        assert {i for i, value in enumerate(paired.holm(p)) if value <= level} == rejected
    assert paired.holm([0.01, 0.5, 0.02]) == pytest.approx([0.03, 0.5, 0.04])
    assert paired.holm([0.04, 0.04]) == [0.08, 0.08]
    assert paired.holm([]) == []


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([(3, 5)], "the same test examples"),
        ([(2, 4)], "expected the same seeds; got 3 and 2"),
        ([(3, 4), (1, 4)], "of one number of seeds"),
        ([], "tasks of"),
        ([(3, 0)], "tasks of"),
    ],
)
def test_rows_that_do_not_fit_are_refused(second, message):
    with pytest.raises(InputError, match=message):
        paired.difference([torch.ones(3, 4)], [torch.ones(shape) for shape in second])
