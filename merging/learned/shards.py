"""Each process's part of the weights: it alone reads that part of the task vectors, to merge it and to contract it.

θ stands in one row of P numbers, cut into N parts of equal length (the last ones may be shorter, or empty). A pass then
reads T P/N numbers of task vectors twice in each process, in place of T P; in exchange the parts of θ are gathered by
everybody and the gradient's are added up where they belong. Both maps run on the CPU, where task vectors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from bounds.types import Blocks, Params
from merging.processes import Processes
from merging.task_vectors import TaskVectors, contract, merged


class Shard:
    """One process's part of θ, and the two maps of a merge by parts. Exact up to the order of sums.

    ``vectors`` are the task vectors of this part, none where it is empty.
    """

    def __init__(self, task_vectors: TaskVectors, blocks: Blocks, processes: Processes) -> None:
        self._processes, self._base = processes, task_vectors.base
        self._shape = (len(task_vectors), len(blocks))
        length = -(-sum(value.numel() for value in self._base.values()) // processes.size)
        self._row = torch.zeros(processes.size * length, dtype=task_vectors.dtype)
        self._own = slice(processes.rank * length, (processes.rank + 1) * length)
        self._places = _places(self._base, self._own)
        cut = {name: inside for name, (inside, _) in self._places.items()}
        self._blocks = {block: own for block, names in blocks.items() if (own := tuple(n for n in names if n in cut))}
        self._columns = [column for column, block in enumerate(blocks) if block in self._blocks]
        self.vectors = _part(task_vectors, cut) if cut else None

    def merged(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return θ_λ, all of it, of which this process merged its part; valid until the next call of a method.

        Raises:
            InputError: as :meth:`merging.processes.Processes.total`.
        """

        def own() -> Tensor:
            part = self._row[self._own]
            if self.vectors is not None:
                merged(self.vectors, coefficients[:, self._columns], self._blocks, out=self._pieces(part))
            return part.clone()  # what is sent does not lie in what is filled

        self._processes.gather_parts(own, self._row)
        return _views(self._row, self._base)

    def summed(self, gradient: Callable[[], Params]) -> Tensor:
        """Return this process's part of the sum over processes of the gradients in θ.

        Raises:
            InputError: as :meth:`merging.processes.Processes.total`.
        """

        def row() -> Tensor:
            found = gradient()
            for name, room in _views(self._row, self._base).items():  # θ is merged anew in the next pass
                room.copy_(found[name])
            return self._row

        return self._processes.sum_parts(row)

    def contracted(self, part: Tensor) -> Tensor:
        """Return what this process's part of ∇_θ adds to ∇_λ [T, L]."""
        result = torch.zeros(self._shape, dtype=part.dtype)
        if self.vectors is not None:
            result[:, self._columns] = contract(self.vectors, self._pieces(part), self._blocks)
        return result

    def gathered(self, part: Tensor) -> Params:
        """Return all of ∇_θ of which this is a part; it travels when somebody (every process) asks for it."""

        def whole() -> dict[str, Tensor]:
            row = torch.empty_like(self._row)
            self._processes.gather_parts(lambda: part, row)
            return _views(row, self._base)

        return _Later(self._base, whole)

    def _pieces(self, part: Tensor) -> dict[str, Tensor]:
        return {name: part[place] for name, (_, place) in self._places.items()}


def _places(base: Params, own: slice) -> dict[str, tuple[slice, slice]]:
    """Return, of every tensor that reaches into a part of the row, which of its numbers do, and where in the part."""
    places, offset = {}, 0
    for name, value in base.items():
        start, stop = max(own.start, offset), min(own.stop, offset + value.numel())
        if start < stop:
            places[name] = slice(start - offset, stop - offset), slice(start - own.start, stop - own.start)
        offset += value.numel()
    return places


def _part(task_vectors: TaskVectors, cut: Mapping[str, slice]) -> TaskVectors:
    """Return some numbers of each tensor as task vectors of their own, which share memory with the whole."""
    base = {name: task_vectors.base[name].flatten()[inside] for name, inside in cut.items()}
    tasks, stacked = len(task_vectors), task_vectors.stacked
    rows = {name: stacked[name].reshape(tasks, -1)[:, inside] for name, inside in cut.items()}
    return TaskVectors.from_stacked(base, rows, task_vectors.names)


def _views(row: Tensor, base: Params) -> dict[str, Tensor]:
    """View a row of numbers as tensors of the shapes of ``base``; what is left over at the end belongs to none."""
    sizes = [value.numel() for value in base.values()]
    pieces = row[: sum(sizes)].split(sizes)
    return {name: piece.view(value.shape) for (name, value), piece in zip(base.items(), pieces, strict=True)}


class _Later(Mapping[str, Tensor]):
    """Parameters that are made when somebody first asks for one."""

    def __init__(self, names: Params, make: Callable[[], dict[str, Tensor]]) -> None:
        self._names, self._make, self._made = names, make, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if not self._made:
            self._made = self._make()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
