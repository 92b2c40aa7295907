"""The ledger: its identity, its parts by hand, and what happens when delta is not shared."""

import math

import numpy as np
import pytest
import torch

from bounds.certificates import BoundedSample, TaskLosses, choose_constants, ledger, weighted_mean
from bounds.heterogeneity import cross_risk, heterogeneity
from bounds.scores import largest_smoothed_loss, smoothed_cross_entropy
from bounds.types import InputError

DELTA = 0.05
SIZES = (50, 31, 80)
ALPHA, BETA = (0.5, 0.2, 0.3), (0.1, 0.6, 0.3)


def smoothed(generator, sizes=SIZES, classes=5, eps=0.02):
    """Tasks with smoothed cross-entropies of random scores: experts are good on their own task."""
    tasks = []
    for t, n in enumerate(sizes):
        labels = torch.randint(classes, (n,), generator=generator)
        scores = torch.randn(len(sizes) + 1, n, classes, generator=generator).double()
        scores[t, torch.arange(n), labels] += 4.0
        scores[-1, torch.arange(n), labels] += 3.0
        losses = smoothed_cross_entropy(scores, labels, eps)
        tasks.append(TaskLosses(merged=losses[-1], experts=losses[:-1].T, largest=largest_smoothed_loss(classes, eps)))
    return tasks


def margin(bound):
    return bound.terms[-1].estimate.value


def test_the_parts_add_up_and_each_is_what_it_says():
    tasks = smoothed(torch.Generator().manual_seed(0))
    book = ledger(tasks, ALPHA, BETA, DELTA)
    own, apart, merging, total = (
        b.terms[0].estimate.value for b in (book.own, book.heterogeneity, book.merging, book.total)
    )
    assert own + apart + merging == pytest.approx(total, abs=1e-12)
    risks = torch.stack([t.experts.mean(0) for t in tasks])  # [task, expert]
    merged = torch.stack([t.merged.mean() for t in tasks])
    alpha, beta = (torch.tensor(w, dtype=torch.float64) for w in (ALPHA, BETA))
    assert own == pytest.approx(float(beta @ risks.diag()), abs=1e-12)
    assert apart == pytest.approx(float(alpha @ risks @ beta - beta @ risks.diag()), abs=1e-12)
    assert merging == pytest.approx(float(alpha @ merged - alpha @ risks @ beta), abs=1e-12)
    assert total == pytest.approx(float(alpha @ merged), abs=1e-12)
    # heterogeneity is that of (1), at point masses
    by_one = heterogeneity(cross_risk([t.experts for t in tasks]), ALPHA, BETA)
    assert apart == pytest.approx(by_one.value, abs=1e-12)


def test_the_parts_share_delta_and_the_total_has_its_own():
    tasks = smoothed(torch.Generator().manual_seed(1))
    book = ledger(tasks, ALPHA, BETA, DELTA, models_looked_at=2)
    assert [b.delta for b in (book.own, book.heterogeneity, book.merging)] == pytest.approx([DELTA / 3] * 3)
    assert book.total.delta == DELTA
    assert {b.status for b in (book.own, book.heterogeneity, book.merging, book.total)} == {"certified"}
    direct = [BoundedSample(values=t.merged, upper=t.largest) for t in tasks]
    assert book.total.value == weighted_mean(direct, ALPHA, DELTA, models_looked_at=2).value
    own = [BoundedSample(values=t.experts[:, j], upper=t.largest) for j, t in enumerate(tasks)]
    assert book.own.value == weighted_mean(own, BETA, DELTA / 3, models_looked_at=2).value
    assert book.own.value + book.heterogeneity.value + book.merging.value > book.total.value
    assert book.merging.value < book.own.value < book.heterogeneity.value
    pilots = smoothed(torch.Generator().manual_seed(2), (200, 200, 200))
    better = ledger(tasks, ALPHA, BETA, DELTA, pilots, models_looked_at=2)
    others = [BoundedSample(values=t.merged, upper=t.largest) for t in pilots]
    constants = choose_constants(others, direct, ALPHA, DELTA / 2)
    assert better.total.value == weighted_mean(direct, ALPHA, DELTA, constants, models_looked_at=2).value
    for name in ("own", "heterogeneity", "merging", "total"):
        ratio = margin(getattr(better, name)) / margin(getattr(book, name))
        assert ratio < (1.1 if name == "own" else 0.9)  # own risks are far below the range: little is left to gain


def test_every_part_covers_and_a_part_without_its_margin_does_not():
    """Two tasks of 0-1 losses with known rates; wrong: the observed parts taken for the truth."""
    generator, rounds, sizes = np.random.default_rng(0), 400, (40, 25)
    chances = (np.array([0.05, 0.6, 0.2]), np.array([0.7, 0.1, 0.3]))  # expert 0, expert 1, merge
    alpha, beta = (0.4, 0.6), (0.5, 0.5)
    own = 0.5 * 0.05 + 0.5 * 0.1
    mixed = 0.4 * (0.5 * 0.05 + 0.5 * 0.6) + 0.6 * (0.5 * 0.7 + 0.5 * 0.1)
    total = 0.4 * 0.2 + 0.6 * 0.3
    truths = {"own": own, "heterogeneity": mixed - own, "merging": total - mixed, "total": total}
    missed, without = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0)
    for _ in range(rounds):
        tasks = []
        for chance, n in zip(chances, sizes, strict=True):
            wrong = torch.from_numpy(1.0 * (generator.random(n) < chance[:, None]))  # one uniform: losses are paired
            tasks.append(TaskLosses(merged=wrong[2], experts=wrong[:2].T, largest=1.0))
        book = ledger(tasks, alpha, beta, DELTA)
        for name, truth in truths.items():
            bound = getattr(book, name)
            missed[name] += bound.value < truth
            without[name] += bound.terms[0].estimate.value < truth - 1e-9
    assert all(count <= DELTA * rounds for count in missed.values())
    assert all(count > 0.3 * rounds for count in without.values())


def test_one_task_and_zero_weights_have_a_ledger():
    tasks = smoothed(torch.Generator().manual_seed(3))
    alone = ledger([TaskLosses(merged=tasks[0].merged, experts=tasks[0].experts[:, :1], largest=tasks[0].largest)],
                   (1.0,), (1.0,), DELTA)  # fmt: skip
    assert alone.heterogeneity.value == pytest.approx(0.0, abs=1e-9)
    book = ledger(tasks, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), DELTA)
    parts = [b.terms[0].estimate.value for b in (book.own, book.heterogeneity, book.merging)]
    assert sum(parts) == pytest.approx(float(tasks[0].merged.mean()), abs=1e-12)
    assert all(math.isfinite(b.value) for b in (book.own, book.heterogeneity, book.merging, book.total))


def test_bad_input_is_refused():
    tasks = smoothed(torch.Generator().manual_seed(4))
    one = tasks[0]
    for call, words in (
        (lambda: TaskLosses(merged=one.merged, experts=one.experts[:3], largest=one.largest), "align"),
        (lambda: TaskLosses(merged=one.merged, experts=one.experts, largest=0.1), "clip or smooth"),
        (lambda: TaskLosses(merged=one.merged, experts=one.experts, largest=0.0), "largest"),
        (lambda: ledger(tasks[:2], (0.5, 0.5), (0.5, 0.5), DELTA), "experts"),
        (lambda: ledger(tasks, ALPHA, (0.5, 0.5), DELTA), "beta"),
        (lambda: ledger(tasks, ALPHA, BETA, 2.0), "delta"),
        (lambda: ledger(tasks, ALPHA, BETA, DELTA, tasks[:2]), "pilots"),
        (lambda: ledger(tasks, ALPHA, BETA, DELTA, models_looked_at=0), "models looked at"),
    ):
        with pytest.raises(InputError, match=words):
            call()
