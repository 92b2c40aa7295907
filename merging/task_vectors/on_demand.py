"""Task vectors that are not kept: formed, tensor by tensor, from θ_0 and the experts whenever they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bounds.types import Params, refuse
from merging.params import finite


def difference(expert: Tensor, base: Tensor, out: Tensor) -> None:
    """Write expert - base, computed in at least float32, to ``out``, whose precision may be lower.

    Half precision is widened before it is subtracted: it would lose the task vector to rounding.
    """
    if expert.dtype == base.dtype == out.dtype == torch.float32 and expert.device == out.device:
        torch.sub(expert, base, out=out)  # the usual case, in one call
        return
    wide = torch.promote_types(torch.promote_types(expert.dtype, base.dtype), torch.float32)
    torch.sub(expert.to(out.device, wide), base.to(out.device, wide), out=out)


def refuse_values(what: str, values: Tensor, precision: torch.dtype) -> None:
    """Refuse numbers of an expert that are not finite, or else a difference that is not, although they are.

    Raises:
        InputError: always.
    """
    if not finite(values):
        refuse(what, expected="finite numbers", got="nan or inf", cure="check the checkpoint")
    refuse(
        f"{what}, minus the base model's",
        expected=f"numbers within the range of {precision}",
        got="an overflow",
        cure="keep task vectors in float32, or check the checkpoint",
    )


class _Room(threading.local):
    """One buffer per thread: fresh memory for every part would cost more than the subtraction."""

    memory: Tensor = torch.empty(0)


class OnDemand(Mapping[str, Tensor]):
    """The T task vectors of experts that stay where they are, as a rule in mapped files: name -> τ [T, ...].

    ``stacked[name]`` forms one parameter's task vectors as a new tensor; :meth:`part` forms a part of them. Nothing is
    kept, so the memory is that of one tensor or part, and each use reads the experts again. Values are checked when
    they are formed.
    """

    def __init__(self, base: Params, experts: Mapping[str, Params]) -> None:
        self.base = {name: value.detach() for name, value in base.items()}
        self.names = list(experts)
        self._experts = [{name: params[name].detach() for name in base} for params in experts.values()]
        self._flat = [
            {name: value.flatten() for name, value in params.items()} for params in (*self._experts, self.base)
        ]
        self._room = _Room()

    def __getitem__(self, name: str) -> Tensor:
        base = self.base[name]
        result = torch.empty(len(self._experts), *base.shape, dtype=self._dtype(name))
        for index, out in enumerate(result):
            self._form(index, name, self._experts[index][name], base, out)
        return result

    def __contains__(self, name: object) -> bool:
        """Whether there is such a parameter; a Mapping would form it to find out."""
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def restricted(self, names: Sequence[str]) -> OnDemand:
        """Return the task vectors of some parameters only."""
        experts = {task: params for task, params in zip(self.names, self._experts, strict=True)}
        return OnDemand({name: self.base[name] for name in names}, experts)

    def of_experts(self, names: Sequence[str]) -> OnDemand:
        """Return the task vectors of some experts only."""
        experts = dict(zip(self.names, self._experts, strict=True))
        return OnDemand(self.base, {name: experts[name] for name in names})

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return τ [T, stop - start] of a parameter's numbers in order, until the thread's next call."""
        size, dtype = len(self._experts) * (stop - start), self._dtype(name)
        if self._room.memory.dtype != dtype or self._room.memory.numel() < size:
            self._room.memory = torch.empty(size, dtype=dtype)
        result = self._room.memory[:size].view(len(self._experts), stop - start)
        *experts, base = (flat[name][start:stop] for flat in self._flat)
        for expert, out in zip(experts, result.unbind(), strict=True):
            difference(expert, base, out)
        if not finite(result):
            for index, expert in enumerate(experts):
                self._form(index, name, expert, base, result[index])
        return result

    def write_mean(self, name: str, start: int, stop: int, out: Tensor) -> bool:
        """Write Σ_t θ_t/T of a parameter's numbers in order to ``out`` [stop - start]; return whether it is finite.

        The mean of finite experts is finite but for rounding at the largest number; any other expert makes it infinite
        or no number.
        """
        share = 1 / len(self._experts)
        first, *others = (flat[name][start:stop] for flat in self._flat[:-1])
        torch.mul(first.to(out.device, out.dtype), share, out=out)
        for other in others:
            out.add_(other.to(out.device), alpha=share)
        return finite(out)

    def one(self, index: int, name: str) -> Tensor:
        """Return τ_t of one parameter as a new tensor."""
        result = torch.empty(self.base[name].shape, dtype=self._dtype(name))
        self._form(index, name, self._experts[index][name], self.base[name], result)
        return result

    def expert(self, index: int, name: str) -> Tensor:
        """Return θ_t of one parameter as it was given, in at least float32."""
        value = self._experts[index][name]
        if not finite(value):
            refuse_values(f"expert {self.names[index]!r} {name}", value, value.dtype)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    def deltas(self) -> tuple[Params, ...]:
        """Return a mapping name -> τ_t for each expert that forms what it is asked for."""
        return tuple(_Delta(self, index) for index in range(len(self._experts)))

    def _dtype(self, name: str) -> torch.dtype:
        return torch.promote_types(self.base[name].dtype, torch.float32)

    def _form(self, index: int, name: str, expert: Tensor, base: Tensor, out: Tensor) -> None:
        difference(expert, base, out)
        if not finite(out):
            refuse_values(f"expert {self.names[index]!r} {name}", expert, out.dtype)


class _Delta(Mapping[str, Tensor]):
    def __init__(self, stacked: OnDemand, index: int) -> None:
        self._stacked, self._index = stacked, index

    def __getitem__(self, name: str) -> Tensor:
        return self._stacked.one(self._index, name)

    def __contains__(self, name: object) -> bool:
        return name in self._stacked

    def __iter__(self) -> Iterator[str]:
        return iter(self._stacked)

    def __len__(self) -> int:
        return len(self._stacked)


def common_precision(experts: Sequence[tuple[str, Params]]) -> None:
    """Check that every parameter has one precision in all experts.

    Raises:
        InputError: it has not.
    """
    first = experts[0][1]
    for name, params in experts:
        for key, value in params.items():
            if value.dtype != first[key].dtype:
                refuse(
                    f"expert {name!r} {key}",
                    expected=f"{first[key].dtype} as in the first expert",
                    got=value.dtype,
                    cure="save all experts in one precision",
                )
