"""Draws belong to tasks by name, whatever stands beside them, and every method chooses its examples by one function."""

import torch

from merging.draws import chosen_positions, task_generators
from merging.learned.problem import prepare
from merging.learned.settings import LearnedSettings
from merging.suites import toy


def test_positions_belong_to_the_name_and_are_distinct():
    one = chosen_positions(["a", "b", "c"], [30, 40, 50], 12, 5)
    two = chosen_positions(["c", "a"], [50, 30], 12, 5)
    assert torch.equal(one[2], two[0])
    assert torch.equal(one[0], two[1])
    assert all(len(set(p.tolist())) == 12 for p in one)
    assert not torch.equal(one[0], chosen_positions(["a"], [30], 12, 6)[0])
    (generator,) = task_generators(["a"], 5)
    assert torch.equal(one[0], torch.randperm(30, generator=generator)[:12])


def test_what_learned_merges_choose_is_what_can_be_told_from_their_settings():
    suite = toy.build()
    settings = LearnedSettings(examples=8, seed=3, steps=1)
    chosen = prepare(suite.task_vectors, suite.tasks, settings).chosen
    sizes = [len(task.calibration) for task in suite.tasks]
    told = chosen_positions(suite.task_vectors.names, sizes, 8, 3)
    assert all(torch.equal(a, b) for a, b in zip(chosen, told, strict=True))
