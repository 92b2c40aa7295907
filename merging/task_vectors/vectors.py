"""Task vectors τ_t = θ_t - θ_0 and the two linear maps a merge needs: λ -> θ_λ and its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bounds.types import Blocks, Params, refuse
from merging.params import check_no_factors, check_partition, finite, partition, widened
from merging.task_vectors.arithmetic import PART, Rows, add_rows, cut, dot_rows, formed, rows, run
from merging.task_vectors.on_demand import OnDemand, common_precision, difference, refuse_values
from merging.task_vectors.storage import Storage, destination, is_written, read

Expert = Params | Callable[[], Params]
"""An expert's parameters, or a function that reads them when they are needed."""


@dataclass(frozen=True)
class TaskVectors:
    """Pretrained weights and the task vectors of T experts.

    ``base`` is θ_0, in at least float32 (half precision is widened here, exactly, so that everything made from task
    vectors computes in float32 at least); ``deltas[t]`` is τ_t with the names and shapes of ``base``, in its order;
    ``names[t]`` names task t.
    Per parameter the T deltas lie together in one tensor [T, ...] (``stacked``), so that merging and contraction
    each read every task vector exactly once; ``deltas`` are views of it. The tensors may be memory-mapped
    (:meth:`from_experts` with a file, :meth:`open`), may be kept in half precision (sums are taken in at least float32
    either way), or may not be kept at all (:meth:`on_demand`).

    Raises:
        InputError: no task vector, names that do not match, different keys or shapes, non-float or non-finite values.
    """

    base: Params
    deltas: Sequence[Params]
    names: Sequence[str]
    stacked: Mapping[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.deltas) != len(self.names):
            refuse(
                "task vectors",
                expected="one name per task vector",
                got=f"{len(self.deltas)} task vectors, names {list(self.names)}",
                cure="name each expert once",
            )
        _check_names(self.names)
        check_no_factors(self.base)
        _check("base", self.base, self.base)
        _check_values("base", self.base)
        for name, delta in zip(self.names, self.deltas, strict=True):
            _check(f"task vector {name!r}", delta, self.base)
            _check_values(f"task vector {name!r}", delta)
        stacked = {key: torch.stack([delta[key].detach() for delta in self.deltas]) for key in self.base}
        _fill(self, self.base, stacked)

    @staticmethod
    def from_experts(
        base: Params,
        experts: Mapping[str, Expert],
        storage: Storage | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> TaskVectors:
        """Subtract θ_0 from experts (in float32 or wider), holding one expert at a time.

        A file that is there already, made from the same sources, is opened and no expert is read.

        Args:
            base: θ_0.
            experts: task -> parameters, or a function that reads them (called once, in order).
            storage: precision and place of the task vectors; by default float32 or wider, in memory.
            sources: what the experts were read from -> sha256, kept in the file.

        Raises:
            InputError: as for the class; experts whose keys, shapes or dtypes differ; a disk without room; a file of
                other task vectors.
        """
        storage, sources, names = storage or Storage(), sources or {}, list(experts)
        _check_names(names)
        check_no_factors(base)
        _check("base", base, base)
        _check_values("base", base)
        if storage.file and is_written(base, names, storage, sources):
            return TaskVectors.open(storage.file)
        with destination(base, names, storage, sources) as stacked:
            dtypes: dict[str, torch.dtype] = {}
            for index, (name, expert) in enumerate(experts.items()):
                _subtract_into(stacked, index, name, expert, base, dtypes)
        if storage.file is None:
            return TaskVectors.from_stacked(base, stacked, names)
        return TaskVectors.open(storage.file, verified=True)  # its digests were taken a moment ago

    @staticmethod
    def on_demand(base: Params, experts: Mapping[str, Params]) -> TaskVectors:
        """Form task vectors, in float32 or wider, from the experts' own tensors whenever they are used; keep none.

        For experts in mapped files (:func:`merging.checkpoints.map_safetensors`) and merges that read every task vector
        once or twice: neither T experts nor T task vectors are ever in memory. Rows that take passes copy them first
        (:meth:`kept`). θ_0 is checked now, an expert's values when they are read.

        Raises:
            InputError: as for :meth:`from_experts`.
        """
        _check_names(list(experts))
        check_no_factors(base)
        _check("base", base, base)
        _check_values("base", base)
        for name, params in experts.items():
            _check(f"expert {name!r}", params, base)
        common_precision(list(experts.items()))
        return TaskVectors.from_stacked(base, OnDemand(base, experts), list(experts))

    @staticmethod
    def from_stacked(base: Params, stacked: Mapping[str, Tensor], names: Sequence[str]) -> TaskVectors:
        """Take tensors [T, ...] as they are, without copying or reading them (values are not checked)."""
        _check_names(names)
        result = object.__new__(TaskVectors)
        object.__setattr__(result, "base", base)
        object.__setattr__(result, "names", names)
        if isinstance(stacked, OnDemand):
            _fill(result, base, stacked)
            return result
        for key, value in base.items():
            expected = (len(names), *value.shape)
            if key not in stacked or tuple(stacked[key].shape) != expected:
                got = tuple(stacked[key].shape) if key in stacked else "nothing"
                refuse(f"task vectors of {key}", expected=expected, got=got, cure="stack one delta per task")
        _fill(result, base, {key: stacked[key] for key in base})
        return result

    @staticmethod
    def open(file: Path, *, verified: bool = False) -> TaskVectors:
        """Map the task vectors of a file that :meth:`from_experts` wrote.

        The file is read through once to check its digests, in small parts, at about the speed of sha256 (seconds per
        GB are in docs/engine.md); ``verified`` leaves that out: nothing is read then until it is used.

        Raises:
            InputError: a missing, cut, changed or foreign file.
        """
        base, stacked, names = read(file, verified=verified)
        return TaskVectors.from_stacked(base, stacked, names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dtype(self) -> torch.dtype:
        """What merged weights and coefficients are computed in: θ_0's dtype, at least float32."""
        return torch.promote_types(next(iter(self.base.values())).dtype, torch.float32)

    def expert(self, index: int) -> dict[str, Tensor]:
        """Return θ_t = θ_0 + τ_t, in the dtype of θ_0; of restricted task vectors with all that the expert has."""
        if self.whole is not None:
            return self.whole.expert(index)
        return {key: self.expert_tensor(index, key) for key in self.base}

    def expert_tensor(self, index: int, name: str) -> Tensor:
        """Return one parameter of θ_t."""
        if isinstance(self.stacked, OnDemand):
            return self.stacked.expert(index, name).to(self.dtype)
        return self.base[name] + self.stacked[name][index]

    def kept(self) -> TaskVectors:
        """Return the same task vectors in memory, for what reads them many times."""
        if not isinstance(self.stacked, OnDemand):
            return self
        result = TaskVectors.from_stacked(self.base, dict(self.stacked.items()), self.names)
        return result._part_of(self.whole)

    @property
    def whole(self) -> TaskVectors | None:
        """The task vectors of which these are a part (:meth:`restricted`); their experts are whole models."""
        return vars(self).get("_whole")

    def _part_of(self, whole: TaskVectors | None) -> TaskVectors:
        object.__setattr__(self, "_whole", whole)
        return self

    def restricted(self, names: Sequence[str]) -> TaskVectors:
        """Return the task vectors of some parameters only, sharing memory; their experts are still whole models."""
        base = {name: self.base[name] for name in names}
        if isinstance(self.stacked, OnDemand):
            stacked: Mapping[str, Tensor] = self.stacked.restricted(names)
        else:
            stacked = {name: self.stacked[name] for name in names}
        result = TaskVectors.from_stacked(base, stacked, self.names)
        return result._part_of(self.whole or self)

    def of_experts(self, names: Sequence[str]) -> TaskVectors:
        """Return the task vectors of these experts only, in this order: a copy, unless they are formed on demand.

        Raises:
            InputError: none, a name twice, or one that is not among the experts'.
        """
        _check_names(names)
        for name in names:
            if name not in self.names:
                cure = "name experts of the suite"
                refuse("expert", expected=" or ".join(self.names), got=repr(name), cure=cure)
        index = [list(self.names).index(name) for name in names]
        if isinstance(self.stacked, OnDemand):
            return TaskVectors.from_stacked(self.base, self.stacked.of_experts(names), list(names))
        return TaskVectors.from_stacked(self.base, {k: v[index] for k, v in self.stacked.items()}, list(names))


def _subtract_into(
    stacked: Mapping[str, Tensor],
    index: int,
    name: str,
    expert: Expert,
    base: Params,
    dtypes: dict[str, torch.dtype],
) -> None:
    """Write τ_t of one expert, which is forgotten on return; ``dtypes`` are those of the first."""
    params = expert() if callable(expert) else expert
    _check(f"expert {name!r}", params, base)
    for key, value in params.items():
        if dtypes.setdefault(key, value.dtype) != value.dtype:
            refuse(
                f"expert {name!r} {key}",
                expected=f"{dtypes[key]} as in the first expert",
                got=value.dtype,
                cure="save all experts in one precision",
            )
        _write_difference(f"expert {name!r} {key}", value.detach(), base[key].detach(), stacked[key][index])


def _write_difference(what: str, expert: Tensor, base: Tensor, out: Tensor) -> None:
    """Write expert - base to a contiguous ``out``, part by part: its values are checked while they are in the cache."""
    pieces = (tensor.reshape(-1).split(PART) for tensor in (expert, base, out.view(-1)))
    for ours, theirs, to in zip(*pieces, strict=True):
        difference(ours, theirs, to)
        if not finite(to):
            refuse_values(what, ours, to.dtype)


def _fill(task_vectors: TaskVectors, base: Params, stacked: Mapping[str, Tensor]) -> None:
    names = tuple(task_vectors.names)
    object.__setattr__(task_vectors, "base", {key: widened(value) for key, value in base.items()})
    object.__setattr__(task_vectors, "stacked", stacked)
    object.__setattr__(task_vectors, "names", names)
    if isinstance(stacked, OnDemand):
        views: Sequence[Params] = stacked.deltas()
    else:
        views = tuple({key: tensor[t] for key, tensor in stacked.items()} for t in range(len(names)))
    object.__setattr__(task_vectors, "deltas", views)


def _check_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names):
        refuse("task vectors", expected="distinct names, at least one", got=list(names), cure="name each expert once")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        refuse("names of tasks", expected="text that UTF-8 can write", got=list(names), cure="rename them")


def _check(what: str, params: Params, base: Params) -> None:
    if params.keys() != base.keys():
        missing, extra = [k for k in base if k not in params], [k for k in params if k not in base]
        refuse(
            what,
            expected="the parameter names of the base model",
            got=f"missing {missing[:3]}, unexpected {extra[:3]}",
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


def _check_values(what: str, params: Params) -> None:
    for key, value in params.items():
        if not finite(value):
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


def merged(
    task_vectors: TaskVectors,
    coefficients: Tensor,
    blocks: Blocks | None = None,
    *,
    out: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return θ_λ: for each block l, θ_0^l + Σ_t λ_t^l τ_t^l (docs/theory.md, section 0). Exact; never cached.

    Differentiable in λ without ``out``. Every task vector is read once.

    Args:
        task_vectors: θ_0 and τ_1..τ_T.
        coefficients: λ [T, L].
        blocks: the L blocks; by default one per tensor, or the whole model when L = 1.
        out: where to write θ_λ, on the device where it is computed; filled on first use, overwritten afterwards.

    Raises:
        InputError: see :func:`coefficient_blocks`.
    """
    blocks = coefficient_blocks(task_vectors, coefficients, blocks)
    column = {name: i for i, names in enumerate(blocks.values()) for name in names}
    lines = coefficients.to(task_vectors.dtype).T.contiguous()  # BLAS takes a quarter longer with strided weights
    weights = {name: lines[column[name]] for name in task_vectors.base}
    if out is None:
        return {
            name: add_rows(base.flatten(), rows(task_vectors.stacked[name]).T, weights[name]).view_as(base)
            for name, base in task_vectors.base.items()
        }
    parts: list[tuple[Tensor, Tensor, Rows, Tensor]] = []
    for name, base in task_vectors.base.items():
        if name not in out:
            out[name] = torch.empty(base.shape, dtype=task_vectors.dtype, device=coefficients.device)
        pieces = base.flatten().split(PART), cut(task_vectors.stacked, name), out[name].view(-1).split(PART)
        parts += [(weights[name], *part) for part in zip(*pieces, strict=True)]
    run(lambda part: add_rows(part[1], formed(part[2]).T, part[0], out=part[3]), parts)
    return out


def contract(task_vectors: TaskVectors, gradient: Params, blocks: Blocks) -> Tensor:
    """Contract a gradient in θ with every task vector, block by block: [T, L] of inner products. Exact.

    The adjoint of :func:`merged`: ∇_λ L = contract(∇_θ L). Products are taken in at least float32 and added up in
    float64; every task vector is read once.
    """
    parts, columns = [], []
    for column, names in enumerate(blocks.values()):
        for name in names:
            pieces = list(zip(cut(task_vectors.stacked, name), gradient[name].flatten().split(PART), strict=True))
            parts += pieces
            columns += [column] * len(pieces)
    device = next(iter(gradient.values())).device
    result = torch.zeros(len(task_vectors), len(blocks), dtype=torch.float64, device=device)
    for column, value in zip(columns, run(lambda part: dot_rows(formed(part[0]), part[1]), parts), strict=True):
        result[:, column] += value
    return result.to(task_vectors.dtype)
