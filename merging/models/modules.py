"""A library's own module as a network: some of its parameters are θ, some are heads, the rest is the base's, frozen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bounds.autodiff import functional
from bounds.running_statistics import entries, state
from bounds.types import Forward, Inputs, Params, leaves, refuse
from merging.checkpoints import Aligned, align, is_adapter, read_adapter, read_weights, with_base_rows
from merging.models.base import Expert, Export, Network, Precision, TaskHead, fitting
from merging.models.writing import inside, save_heads, save_state

_CONSTANTS = ("num_batches_tracked", "position_ids", "attn.bias", "attn.masked_bias")
"""Ends of the names of buffers that carry nothing learned, of older and newer files."""


@dataclass(frozen=True)
class Read:
    """Tensors of an expert's files, under their names there, and what there is to say about them."""

    weights: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


class ModuleNetwork(Network):
    """A network that is one module, with weights θ swapped into it.

    What is not in θ becomes buffers of the module, under the same names: so ``functional`` leaves it alone, and the
    module's own code finds it. A head of another number of classes than the module's takes its place in the call.
    """

    common = False
    """Whether embeddings of vocabularies of different length keep the rows that both have."""
    lent: frozenset[str] = frozenset()
    """Entries of θ that an expert may lack: it then has the base's."""
    base_classes: tuple[str, ...] | None = None
    """Classes of the base's own head, where its files name them."""

    def __init__(
        self,
        module: nn.Module,
        weights: Mapping[str, Tensor],
        what: str,
        *,
        head: Collection[str],
        frozen: Callable[[str], bool] = lambda name: False,
        optional: frozenset[str] = frozenset(),
        dtype: Precision = "float32",
    ) -> None:
        """Put the base's weights into its module.

        Args:
            module: the library's, of any weights.
            weights: of the base, by the names of its file.
            what: the base, for messages.
            head: names of the module's state that are a task's own.
            frozen: whether another name is the base's and not merged.
            optional: names that the base may lack; they are then a task's own, too.
            dtype: what is computed with.
        """
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.module: Any = module.eval().to(self.dtype)
        aligned = self._aligned(weights, what, frozenset(head) | optional)
        own = [name for name in module.state_dict() if name in head or name in optional - aligned.weights.keys()]
        self.own: tuple[str, ...] = tuple(own)
        self.notes = said(aligned)
        load(module, {name: value for name, value in aligned.weights.items() if name not in own})
        self.base_head = {name: self._wide(v) for name, v in aligned.weights.items() if name in own}
        freeze(module, lambda name: name in own or frozen(name))
        self.parameters: Params = entries(module)
        self._fixed = frozenset(name for name in module.state_dict() if name not in own and frozen(name))

    def expert(self, path: Path) -> Expert:
        """Read an expert: weights of the whole model, of its part that is merged, or a PEFT adapter.

        Raises:
            InputError: files that do not fit the base, see :func:`merging.checkpoints.align`.
        """
        read = self.read(Path(path))
        aligned = self._aligned(read.weights, f"expert {path}", self.lent | frozenset(self.own), self._fixed)
        fixed = self._fixed_in({name: read.weights[name] for name in aligned.unused})
        aligned = replace(aligned, unused=tuple(name for name in aligned.unused if name not in fixed))
        notes = (*read.notes, *said(aligned), *self._differing(fixed, read.weights))
        found = {name: self._wide(value) for name, value in aligned.weights.items()}
        lent = {name: value for name, value in self.parameters.items() if name in self.lent - found.keys()}
        notes += tuple(f"no {name}: the base's" for name in lent)
        theta = entries(self.module, lent | {name: found[name] for name in found if name not in self.own})
        head = {name: found[name] for name in self.own if name in found}
        if not head and self.base_head:
            head, notes = self.base_head, (*notes, "no head of its own: the base's")
        if self.own and len(head) < len(self.own):
            missing = ", ".join(name for name in self.own if name not in head)
            cure = "save the expert together with its head"
            refuse(f"expert {path}", expected="weights with a head", got=f"no {missing}", cure=cure)
        return Expert(parameters=theta, head=head, notes=notes)

    def read(self, path: Path) -> Read:
        """Return the tensors of an expert's files, or of the base with an adapter."""
        if not is_adapter(path):
            return Read(read_weights(path))
        adapter = read_adapter(path)
        saved = named_as(self.own, adapter.saved)
        heads = {name: value for name, value in self.base_head.items() if name not in saved}
        return Read({**adapter.apply({**self.state_of(self.parameters), **heads}), **saved}, adapter.notes)

    def head(self, expert: Expert | None, class_names: Sequence[str], templates: Sequence[str] = ()) -> TaskHead:
        """Return an expert's learned head, or the base's.

        Raises:
            InputError: the base has none; class names that are not the head's.
        """
        weights = self.base_head if expert is None else expert.head
        if self.own and len(weights) < len(self.own):
            cure = "pass an expert, whose head it is"
            refuse("head", expected="weights of a classification head", got="a base that has none", cure=cure)
        own_names = self.base_classes if expert is None else expert.class_names
        return TaskHead(weights, fitting(class_names, own_names, self.classes(weights)))

    def classes(self, head: Mapping[str, Tensor]) -> int | None:
        """Return the number of classes of a head: the rows of its last tensor; None without a head."""
        return len(head[self.own[-1]]) if self.own else None

    def classifier(self, head: TaskHead) -> Forward:
        """Return (θ, inputs) -> scores [N, C]."""
        weights = {name: self._wide(value) for name, value in head.weights.items()}

        def apply(module: nn.Module, inputs: Inputs) -> Tensor:
            device = leaves(inputs)[0].device
            move_buffers(module, device)
            here = replace(head, weights={name: value.to(device) for name, value in weights.items()})
            return self.scores(module, here, inputs)

        return functional(self.module, apply)[0]

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return the scores [N, C] of the module with a head in its place."""
        arguments = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), dict(inputs))
        return torch.func.functional_call(module, dict(head.weights), *arguments, tie_weights=False)

    def state_of(self, params: Params, head: TaskHead | None = None) -> dict[str, Tensor]:
        """Return a state dict of the library's module: θ, a task's head, and what is frozen."""
        whole = state(self.module, params)
        return {n: v for n, v in whole.items() if n not in self.own} | dict(head.weights if head else {})

    def _aligned(
        self,
        weights: Mapping[str, Tensor],
        what: str,
        optional: frozenset[str],
        without: frozenset[str] = frozenset(),
    ) -> Aligned:
        """Return tensors by the names of the module; those of a head in the shapes that the file has."""
        expected = {n: v.shape for n, v in self.module.state_dict().items() if n not in without}
        expected |= {name: value.shape for name, value in named_as(optional, weights).items()}
        expected = {n: s for n, s in expected.items() if not n.endswith("num_batches_tracked")}
        aligned = align(expected, weights, what, optional=optional, common=self.common)
        base = {n: v for n, v in self.module.state_dict().items() if n in aligned.shorter}
        rows = with_base_rows(base, {n: aligned.weights[n] for n in base})
        return replace(aligned, weights=aligned.weights | rows)

    def _fixed_in(self, unused: Mapping[str, Tensor]) -> dict[str, str]:
        """Return name -> name of the base's tensor that it stands for, of the tensors of a file that are not merged."""
        places = {id(value): name for name, value in unused.items()}
        own = self.module.state_dict()
        found = named_as(self._fixed, unused)
        return {places[id(value)]: name for name, value in found.items() if value.shape == own[name].shape}

    def _differing(self, fixed: Mapping[str, str], weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Say which tensors of an expert are other than the base's, though they are not merged."""
        other = [name for old, name in fixed.items() if not self.is_base(name, weights[old])]
        if other:
            yield f"{len(other)} tensors that are not merged differ from the base's, which stay: {', '.join(other[:3])}"

    def is_base(self, name: str, value: Tensor) -> bool:
        """Whether a tensor is the base's of that name, up to the rounding of the coarser precision."""
        base = self.module.state_dict()[name]
        if value.shape != base.shape or not (value.is_floating_point() and base.is_floating_point()):
            return torch.equal(value, base)
        coarse = max(value.dtype, base.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return torch.equal(value.to(coarse), base.to(coarse))

    def _wide(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def save_states(
    network: ModuleNetwork, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export
) -> None:
    """Write state dicts of the module: one per task, with its head; or one without a head, and heads beside it."""
    if export.per_task and network.own:
        for task, head in heads.items():
            save_state(inside(folder, task), network.state_of(params, head), export.dtype)
        return
    save_state(folder, network.state_of(params), export.dtype)
    if network.own:
        save_heads(folder, heads, export.dtype)


def said(aligned: Aligned) -> tuple[str, ...]:
    """Return what was renamed and what was left unused, one line each."""
    notes = [aligned.renamed] if aligned.renamed else []
    unused = [name for name in aligned.unused if not name.endswith(_CONSTANTS)]
    if unused:
        notes.append(f"{len(unused)} tensors unused: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}")
    if aligned.shorter:
        notes.append(f"a shorter vocabulary: the last rows of {', '.join(aligned.shorter)} are the base's")
    return tuple(notes)


def named_as(names: Collection[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that stand for ``names``, whatever prefixes there are on either side."""
    result = {}
    for name in names:
        longer = sorted((other for other in weights if other.endswith(f".{name}")), key=len)
        shorter = sorted((other for other in weights if name.endswith(f".{other}")), key=len)
        found = next(iter([name] if name in weights else longer[:1] or shorter[-1:]), None)
        if found is not None:
            result[name] = weights[found]
    return result


@torch.no_grad()
def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module's parameters and buffers, by name."""
    own = module.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)


def freeze(module: nn.Module, frozen: Callable[[str], bool]) -> None:
    """Make parameters buffers of the same names and values.

    Raises:
        InputError: a parameter that has one name that is frozen and another that is not; a layer with running
            statistics among what is frozen (they would stay in θ).
    """
    names: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    for group in names.values():
        if len({frozen(name) for name in group}) > 1:
            cure = "untie them, or count both to the same"
            refuse(f"parameters {' and '.join(group)}", expected="all merged or all frozen", got="both", cure=cure)
    for prefix, part in module.named_modules():
        start = f"{prefix}." if prefix else ""
        if frozen(f"{start}running_mean") and getattr(part, "running_mean", None) is not None:
            cure = "leave the layer out of the head"
            refuse(f"layer {prefix}", expected="no running statistics in a head", got=type(part).__name__, cure=cure)
        for name, value in list(part._parameters.items()):
            if value is not None and frozen(start + name):
                del part._parameters[name]
                part.register_buffer(name, value.detach())


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move what is frozen to a device, once: θ and inputs come from there already."""
    for part in module.modules():
        for name, value in part._buffers.items():
            if value is not None and value.device != device:
                part._buffers[name] = value.to(device)
