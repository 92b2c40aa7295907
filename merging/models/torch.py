"""Any module of PyTorch that a function makes: θ is all that is not named as a head."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bounds.types import Inputs, Params, refuse
from merging.checkpoints import read_weights
from merging.models.base import Export, Precision, TaskHead
from merging.models.modules import ModuleNetwork, save_states
from merging.named import find


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which functions make the module, run it and prepare its inputs: each ``package.module:function``."""

    factory: str
    """() -> the module (nn.Module)."""
    head: tuple[str, ...] = ()
    """Names of parameters, or patterns such as ``fc.*``, that are every expert's own."""
    apply: str = ""
    """(module, inputs) -> scores [N, C]; left empty, ``module(inputs)``, or ``module(**inputs)`` of a mapping."""
    prepare: str = ""
    """(examples) -> inputs; left empty, arrays and tensors of one shape are stacked."""
    dtype: Precision = "float32"
    """What is computed with."""


class _Run(nn.Module):
    """A module together with how it is called, so that a head can be put into it for a call."""

    def __init__(self, module: nn.Module, apply: Callable[[nn.Module, Inputs], Tensor]) -> None:
        super().__init__()
        self.inner = module
        self.run = apply

    def forward(self, inputs: Inputs) -> Tensor:
        return self.run(self.inner, inputs)


class TorchNetwork(ModuleNetwork):
    """A module that the factory makes, as base; experts are its state dicts."""

    def __init__(self, base: str | Path, options: Options) -> None:
        self.options = options
        self.applied = find(options.apply, "apply") if options.apply else None
        self.prepared = find(options.prepare, "prepare") if options.prepare else _stacked
        module = find(options.factory, "factory")()
        if not isinstance(module, nn.Module):
            got, cure = type(module).__name__, "return the network"
            refuse(f"factory {options.factory}", expected="a function that returns an nn.Module", got=got, cure=cure)
        names = list(module.state_dict())
        for pattern in options.head:
            if not any(fnmatchcase(name, pattern) for name in names):
                cure = f"the last ones are {', '.join(names[-3:])}"
                refuse("head", expected="names of parameters", got=repr(pattern), cure=cure)
        own = {name: value.clone() for name, value in module.state_dict().items()}
        super().__init__(
            module,
            read_weights(Path(base)) if base else own,
            f"base {base or options.factory}",
            head=[name for name in names if any(fnmatchcase(name, pattern) for pattern in options.head)],
            dtype=options.dtype,
        )

    def classes(self, head: Mapping[str, Tensor]) -> int | None:
        """Return None: which of a head's tensors are the last is not known."""
        return None

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return what ``apply`` returns."""
        if self.applied is None:
            return super().scores(module, head, inputs)
        weights = {f"inner.{name}": value for name, value in head.weights.items()}
        return torch.func.functional_call(_Run(module, self.applied), weights, (inputs,), tie_weights=False)

    def prepare(self, examples: Sequence[Any]) -> Inputs:
        """Return what the function ``prepare`` makes of examples, or stack them."""
        return self.prepared(examples)

    @property
    def preparation(self) -> str:
        """The name of the function and the digest of its module's code (what that imports is not looked at)."""
        if not self.options.prepare:
            return "stacked"
        try:
            source = inspect.getsource(inspect.getmodule(self.prepared) or self.prepared)
        except (OSError, TypeError):
            source = ""
        return f"prepared by {self.options.prepare}, {hashlib.sha256(source.encode()).hexdigest()}"

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write state dicts as safetensors, for ``module.load_state_dict(safetensors.torch.load_file(...))``."""
        save_states(self, params, folder, heads, export)

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written, into a module with a head of the task's size."""
        module, _, name = self.options.factory.partition(":")
        whole = f"{task}/model.safetensors" if per_task and self.own else "model.safetensors"
        head = f' | load_file("heads/{task}.safetensors")' if self.own and not per_task else ""
        return (
            f"from safetensors.torch import load_file\nfrom {module} import {name}\n\n"
            f'model = {name}()\nmodel.load_state_dict(load_file("{whole}"){head})\nmodel.eval()'
        )


def open_base(base: str | Path, options: Options) -> TorchNetwork:
    """Make the module and read its weights; an empty ``base`` keeps those that the factory gives it.

    Raises:
        InputError: no such function, or weights that are not the module's.
    """
    return TorchNetwork(base, options)


def _stacked(examples: Sequence[Any]) -> Inputs:
    """Stack arrays and tensors, or mappings of them by name.

    Raises:
        InputError: something else, or several shapes.
    """
    if examples and isinstance(examples[0], Mapping):
        return {name: _stacked([example[name] for example in examples]) for name in examples[0]}  # pyright: ignore
    if not examples or not all(isinstance(example, (Tensor, np.ndarray)) for example in examples):
        got = type(examples[0]).__name__ if examples else "none"
        refuse("examples", expected="arrays or tensors", got=got, cure="set prepare: package.module:function")
    if len({tuple(example.shape) for example in examples}) > 1:
        got = sorted({tuple(example.shape) for example in examples})[:3]
        refuse("examples", expected="one shape", got=got, cure="set prepare: package.module:function")
    return torch.stack([e if isinstance(e, Tensor) else torch.from_numpy(np.array(e)) for e in examples])
