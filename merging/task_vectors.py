"""Task vectors τ_t = θ_t - θ_0 and the two linear maps a merge needs: λ -> θ_λ and its adjoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging.params import check_partition, partition, subtract


@dataclass(frozen=True)
class TaskVectors:
    """Pretrained weights and the task vectors of T experts.

    ``base`` is θ_0; ``deltas[t]`` is τ_t with the names, shapes and order of ``base``; ``names[t]`` names task t.
    Per parameter the T deltas lie together in one tensor [T, ...] (``stacked``), so that merging and contraction
    each read every task vector exactly once; ``deltas`` are views of it.

    Raises:
        InputError: no task vector, names that do not match, different keys or shapes, non-float or non-finite values.
    """

    base: Params
    deltas: Sequence[Params]
    names: Sequence[str]
    stacked: Mapping[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.deltas) != len(self.names) or not self.names or len(set(self.names)) != len(self.names):
            refuse(
                "task vectors",
                expected="one distinct name per task vector, at least one",
                got=f"{len(self.deltas)} task vectors, names {list(self.names)}",
                cure="name each expert once",
            )
        _check("base", self.base, self.base)
        for name, delta in zip(self.names, self.deltas, strict=True):
            _check(f"task vector {name!r}", delta, self.base)
        stacked = {key: torch.stack([delta[key].detach() for delta in self.deltas]) for key in self.base}
        object.__setattr__(self, "stacked", stacked)
        object.__setattr__(self, "names", tuple(self.names))
        views = tuple({key: tensor[t] for key, tensor in stacked.items()} for t in range(len(self.names)))
        object.__setattr__(self, "deltas", views)

    @staticmethod
    def from_experts(base: Params, experts: Mapping[str, Params]) -> TaskVectors:
        """Subtract θ_0 from experts (in float32 or wider).

        Raises:
            InputError: as for the class; also when an expert's keys or shapes differ from the base's.
        """
        for name, expert in experts.items():
            _check(f"expert {name!r}", expert, base)
        return TaskVectors(base, [subtract(expert, base) for expert in experts.values()], list(experts))

    def __len__(self) -> int:
        return len(self.names)

    def expert(self, index: int) -> dict[str, Tensor]:
        """Return θ_t = θ_0 + τ_t."""
        return {key: value + self.stacked[key][index] for key, value in self.base.items()}


def _check(what: str, params: Params, base: Params) -> None:
    if list(params) != list(base):
        missing, extra = [k for k in base if k not in params], [k for k in params if k not in base]
        got = f"missing {missing[:3]}, unexpected {extra[:3]}" if missing or extra else "the same keys in another order"
        refuse(
            what,
            expected="the parameter names of the base model",
            got=got,
            cure="load it with the base's layout",
        )
    for key, value in params.items():
        if value.shape != base[key].shape:
            refuse(
                f"{what} {key}",
                expected=tuple(base[key].shape),
                got=tuple(value.shape),
                cure="use one architecture",
            )
        if not value.is_floating_point():
            refuse(f"{what} {key}", expected="a float tensor", got=value.dtype, cure="leave integer buffers out")
        if not bool(torch.isfinite(value).all()):
            refuse(f"{what} {key}", expected="finite numbers", got="nan or inf", cure="check the checkpoint")


def coefficient_blocks(task_vectors: TaskVectors, coefficients: Tensor, blocks: Blocks | None) -> Blocks:
    """Return the partition that coefficients [T, L] refer to, after checking both.

    Without ``blocks``, L = 1 means task-wise and L = number of tensors means tensor-wise.

    Raises:
        InputError: coefficients of the wrong shape or not finite, or blocks that are not a partition.
    """
    tasks, tensors = len(task_vectors), len(task_vectors.base)
    if blocks is None:
        columns = coefficients.shape[-1] if coefficients.ndim == 2 else 0
        blocks = partition(task_vectors.base, "task" if columns == 1 else "tensor")
        expected = f"[{tasks}, 1] or [{tasks}, {tensors}]"
    else:
        check_partition(blocks, task_vectors.base)
        expected = f"[{tasks}, {len(blocks)}]"
    if tuple(coefficients.shape) != (tasks, len(blocks)):
        refuse(
            "coefficients",
            expected=expected,
            got=list(coefficients.shape),
            cure="pass blocks with a block-wise λ",
        )
    if not bool(torch.isfinite(coefficients).all()):
        refuse("coefficients", expected="finite numbers", got="nan or inf", cure="lower the learning rate")
    return blocks


def merged(task_vectors: TaskVectors, coefficients: Tensor, blocks: Blocks | None = None) -> dict[str, Tensor]:
    """Return θ_λ: for each block l, θ_0^l + Σ_t λ_t^l τ_t^l (docs/theory.md, section 0). Exact; never cached.

    Args:
        task_vectors: θ_0 and τ_1..τ_T.
        coefficients: λ [T, L].
        blocks: the L blocks; by default one per tensor, or the whole model when L = 1.

    Raises:
        InputError: see :func:`coefficient_blocks`.
    """
    blocks = coefficient_blocks(task_vectors, coefficients, blocks)
    column = {name: i for i, names in enumerate(blocks.values()) for name in names}
    result = {}
    for name, base in task_vectors.base.items():
        deltas = task_vectors.stacked[name]
        weights = coefficients[:, column[name]].to(deltas.dtype)
        result[name] = torch.addmv(base.to(deltas.dtype).flatten(), _rows(deltas).T, weights).view_as(base)
    return result


def contract(task_vectors: TaskVectors, gradient: Params, blocks: Blocks) -> Tensor:
    """Contract a gradient in θ with every task vector, block by block: [T, L] of inner products. Exact.

    The adjoint of :func:`merged`: ∇_λ L = contract(∇_θ L).
    """
    columns = [
        sum(
            (_rows(deltas := task_vectors.stacked[n]) @ gradient[n].flatten().to(deltas.dtype) for n in names),
            start=torch.zeros(len(task_vectors)),
        )
        for names in blocks.values()
    ]
    return torch.stack(columns, dim=1)


def _rows(stacked: Tensor) -> Tensor:
    """View stacked deltas [T, ...] as a matrix [T, numbers]."""
    return stacked.reshape(len(stacked), -1)
