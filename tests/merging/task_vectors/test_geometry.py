"""Norms, cosines and sign conflicts, against an enumeration entry by entry."""

import itertools
import math

import pytest
import torch

from merging import TaskVectors
from merging.task_vectors import Geometry


def vectors(on_demand):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (3, 5), "b": (4,)}

    def draw():
        return {k: torch.randint(-2, 3, s, generator=generator).double() for k, s in shapes.items()}

    base, deltas = draw(), [draw() for _ in range(3)]
    if on_demand:
        experts = {f"t{i}": {k: base[k] + d[k] for k in base} for i, d in enumerate(deltas)}
        return TaskVectors.on_demand(base, experts), deltas
    return TaskVectors(base, deltas, ["t0", "t1", "t2"]), deltas


@pytest.mark.parametrize("on_demand", [False, True])
def test_every_entry_is_counted_as_it_is_written(on_demand):
    tv, deltas = vectors(on_demand)
    found = Geometry.of(tv)
    flat = [[float(x) for k in tv.base for x in d[k].flatten()] for d in deltas]
    for i, j in itertools.product(range(3), repeat=2):
        pairs = list(zip(flat[i], flat[j], strict=True))
        dot = sum(a * b for a, b in pairs)
        assert found.cosines[i][j] == pytest.approx(dot / (math.hypot(*flat[i]) * math.hypot(*flat[j])))
        both = [a * b for a, b in pairs if a and b]
        assert found.conflicts[i][j] == pytest.approx(sum(x < 0 for x in both) / len(both))
        assert found.conflicts[i][j] != pytest.approx(sum(x < 0 for x in both) / len(pairs)) or i == j, "a mutant"
    assert found.norms == pytest.approx([math.hypot(*v) for v in flat])
    columns = list(zip(*flat, strict=True))
    assert found.any_conflict == pytest.approx(sum(min(c) < 0 < max(c) for c in columns) / len(columns))


def test_vectors_that_are_zero_or_opposite():
    base = {"w": torch.zeros(4)}
    deltas = [{"w": torch.zeros(4)}, {"w": torch.ones(4)}, {"w": -torch.ones(4)}]
    found = Geometry.of(TaskVectors(base, deltas, ["zero", "up", "down"]))
    assert found.norms == (0, 2, 2)
    assert found.cosines == ((0, 0, 0), (0, 1, -1), (0, -1, 1))
    assert found.conflicts == ((0, 0, 0), (0, 0, 1), (0, 1, 0))
    assert found.any_conflict == 1
