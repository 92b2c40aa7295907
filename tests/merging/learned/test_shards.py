"""Parts of the weights: together the maps of a merge, each number of a task vector read by one process only."""

import pytest
import torch

from merging.learned.shards import Shard
from merging.params import partition
from merging.processes import Processes
from merging.task_vectors import TaskVectors, contract, merged

SHAPES = {"a.weight": (3, 5), "a.scale": (), "b.weight": (2, 2, 3), "b.bias": (7,)}


class Alone(Processes):
    """One process of several that hears nothing of the others: rows hold its own part, sums its own numbers."""

    def gather_parts(self, compute, whole):
        part = compute()
        whole.zero_()
        whole[self.rank * len(part) : (self.rank + 1) * len(part)] = part

    def sum_parts(self, compute):
        whole = compute()
        length = len(whole) // self.size
        return whole[self.rank * length : (self.rank + 1) * length].clone()


def world(dtype=torch.float64):
    base = {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    stacked = {name: torch.randn(3, *shape, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}
    return TaskVectors.from_stacked(base, stacked, ["x", "y", "z"])


def added(parts, name):
    return torch.stack([part[name] for part in parts]).sum(0)


def shards(vectors, blocks, size):
    return [Shard(vectors, blocks, Alone(rank, size)) for rank in range(size)]


@pytest.mark.parametrize("granularity", ["task", "block", "tensor"])
@pytest.mark.parametrize("size", [1, 2, 4, 7, 50])
def test_parts_add_up_to_the_maps_of_the_whole(size, granularity):
    vectors = world()
    blocks = partition(vectors.base, granularity)
    coefficients = torch.randn(3, len(blocks), dtype=torch.float64)
    gradient = {name: torch.randn_like(value) for name, value in vectors.base.items()}
    parts = shards(vectors, blocks, size)
    theta, expected = [part.merged(coefficients) for part in parts], merged(vectors, coefficients, blocks)
    for name, value in expected.items():
        assert torch.allclose(added(theta, name), value, atol=1e-13)
    found = torch.stack([part.contracted(part.summed(lambda: gradient)) for part in parts])
    assert torch.allclose(found.sum(0), contract(vectors, gradient, blocks), atol=1e-12)
    pieces = [part.gathered(part.summed(lambda: gradient)) for part in parts]
    for name, value in gradient.items():
        assert torch.equal(added(pieces, name), value)


@pytest.mark.parametrize("size", [2, 4, 7, 50])
def test_every_number_of_a_task_vector_is_read_by_one_process(size):
    vectors = world(torch.bfloat16)
    parts = shards(vectors, partition(vectors.base, "tensor"), size)
    read = [0 if part.vectors is None else sum(s.nbytes for s in part.vectors.stacked.values()) for part in parts]
    total = sum(value.nbytes for value in vectors.stacked.values())
    longest = -(-sum(value.numel() for value in vectors.base.values()) // size)
    assert sum(read) == total
    assert max(read) <= 2 * len(vectors) * longest
    owners = {
        part.vectors.stacked[name].untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        for part in parts
        if part.vectors is not None
        for name, value in vectors.stacked.items()
        if name in part.vectors.stacked
    }
    assert owners == {True}, "a part copies what it should view"


def test_the_gradient_travels_only_when_it_is_asked_for():
    vectors = world()
    asked = []

    class Counting(Alone):
        def gather_parts(self, compute, whole):
            asked.append(len(whole))
            super().gather_parts(compute, whole)

    shard = Shard(vectors, partition(vectors.base, "tensor"), Counting(0, 2))
    gradient = shard.gathered(shard.summed(lambda: vectors.base))
    assert (list(gradient), len(gradient), asked) == (list(SHAPES), len(SHAPES), [])
    for name in gradient:
        assert gradient[name].shape == SHAPES[name]
    assert len(asked) == 1
