"""Networks as pure functions, made safe for ``jvp``, ``vjp`` and ``vmap``, and the memory they may use.

PyTorch's fused attention kernels have no forward-mode derivative and no second derivative, and the fast path
of ``nn.MultiheadAttention`` bypasses the switch between them: every function of this package that
differentiates does it under :func:`differentiable`. The two settings differ by about 4e-7 in float32, so
losses that are to be compared must be computed under one of them.

Second derivatives: take ``jvp`` of ``grad``. With PyTorch 2.15, ``grad`` of ``jvp``, ``jvp`` of ``jacrev``
and ``jvp`` of ``jacfwd`` through a layer norm are silently wrong (the saved statistics are treated as
constants).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from bounds.running_statistics import entries, explicit, tensors, tracking
from bounds.types import Blocks, Forward, Inputs, Params, leaves, refuse, take

DEFAULT_MEMORY_BYTES = 2**30
MEMORY_VARIABLE = "MERGEBOUND_MEMORY_BYTES"
WHOLE_MODEL = "model"
"""Name of the only block when no partition is given."""

Apply = Callable[[nn.Module, Inputs], Tensor]
"""(module, inputs [N, ...]) -> scores [N, C]."""


@contextmanager
def without_jit_warning() -> Iterator[None]:
    """Silence one warning that is no concern of the user: a library's own use of the deprecated torch.jit.script."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
        yield


@contextmanager
def differentiable() -> Iterator[None]:
    """Make attention differentiable in every mode and order: MATH attention, no MHA fast path, no autocast.

    Reentrant. Everything is restored on exit, also on an error. Status: exact.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(without_jit_warning())  # torch's own jvp raises it on its first use
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def jvp(function: Callable[[Params], Any], params: Params, tangents: Params) -> tuple[Any, Any]:
    """Return ``function(params)`` and its derivative along ``tangents``, as :func:`torch.func.jvp` has them. Exact.

    PyTorch lays a tangent out as its parameter is, the whole storage included: where a parameter is cut out of
    something larger (a mapped file, a row of all weights) its tangent would take as much memory as all of that, and the
    next parameter's as much again. Such parameters are copied first.

    Args:
        function: of parameters, differentiated under :func:`differentiable`.
        params: where.
        tangents: the direction, with the same names.
    """
    alone = {name: value.clone() if _is_cut_out(value) else value for name, value in params.items()}
    value, along, *_ = torch.func.jvp(function, (alone,), (dict(tangents),))
    return value, along


def _is_cut_out(value: Tensor) -> bool:
    """Whether a tensor's storage holds more than the tensor; what torch.func has wrapped tells nothing of its own."""
    try:
        return value.untyped_storage().nbytes() > value.nbytes
    except NotImplementedError:
        return False


_DATA_DEPENDENT = (
    "attempting to use a Tensor in some data-dependent control flow",
    "calling .item() on a Tensor",
)
"""What PyTorch's message says when a function under vmap looks at the values of its tensors."""


def vmap_or_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``torch.vmap(function)(*arguments)``, by a loop where the function branches on its data.

    The mask code of transformers does (``mask.all()``), which vmap cannot follow. A loop over the first axis gives the
    same numbers, to rounding, and is taken only after vmap was refused for that reason; every other error is raised.

    Args:
        function: of tensors, or of containers of them, without their first axis.
        arguments: tensors or (nested) containers of them, all with the same first axis.
    """
    try:
        return torch.vmap(function)(*arguments)
    except RuntimeError as error:
        if not any(text in str(error) for text in _DATA_DEPENDENT):
            raise
    flat, spec = tree_flatten(arguments)
    results = [tree_flatten(function(*tree_unflatten([leaf[i] for leaf in flat], spec))) for i in range(len(flat[0]))]
    columns = zip(*(leaves_ for leaves_, _ in results), strict=True)
    return tree_unflatten([torch.stack(column) for column in columns], results[0][1])


class _Applied(nn.Module):
    """Holds a module so that ``functional_call`` can reach it through any calling convention."""

    def __init__(self, module: nn.Module, apply: Apply) -> None:
        super().__init__()
        self.module = module
        self.apply_to = apply

    def forward(self, inputs: Inputs) -> Tensor:
        return self.apply_to(self.module, inputs)


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    return module(inputs) if isinstance(inputs, Tensor) else module(**inputs)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put the submodules that are training into evaluation mode, and back on exit."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _refuse_checkpointing(module: nn.Module) -> None:
    for name, part in module.named_modules():
        for flag in ("grad_checkpointing", "gradient_checkpointing"):
            if getattr(part, flag, False) is True:
                refuse(
                    f"module {name or type(part).__name__!r}",
                    expected="no gradient checkpointing (torch.func does not support it)",
                    got=f"{flag}=True",
                    cure="switch it off before wrapping the module",
                )


def functional(module: nn.Module, apply: Apply | None = None, *, per_position: bool = False) -> tuple[Forward, Params]:
    """Turn a module into a pure function of its parameters, without copying any of them.

    Args:
        module: the network. It is run in evaluation mode and left in the mode it was in; what is no entry of θ
            (integer buffers, constants) stays as it is in the module.
        apply: (module, inputs) -> scores [N, C]; default ``module(inputs)``, or ``module(**inputs)`` for a
            mapping.
        per_position: the module scores every position of an example: scores are [N, L, V].

    Returns:
        forward: (params, inputs [N, ...]) -> scores [N, C]. It does not enter :func:`differentiable` itself,
            so that training code may use the fast kernels; every function of this package that differentiates
            does.
        params: θ: name -> detached leaf that shares memory with the module; tied weights appear once; running
            statistics are entries of it (see :mod:`bounds.running_statistics`).

    Raises:
        InputError: gradient checkpointing is on (here, or when ``forward`` is called); (from ``forward``)
            missing or extra parameters or an empty batch; the scores are not a float tensor [N, C] (or [N, L, V]).
    """
    _refuse_checkpointing(module)
    params, tracks = entries(module), bool(tracking(module))
    wrapper = _Applied(module, apply or _call)

    def forward(params_: Params, inputs: Inputs) -> Tensor:
        if params_.keys() != params.keys():
            _refuse_keys("parameters", params_, params)
        _refuse_checkpointing(module)
        prefixed = {f"module.{name}": value for name, value in tensors(module, params_).items()}
        with _evaluating(module), explicit(tracks):
            scores = torch.func.functional_call(wrapper, prefixed, (inputs,))
        return _check_scores(scores, check_inputs(inputs), per_position)

    return forward, params


def _check_scores(scores: object, n: int, per_position: bool) -> Tensor:
    inner, row = ("L, V", "position") if per_position else ("C", "example")
    if not isinstance(scores, Tensor):
        refuse(
            "scores",
            expected=f"a tensor [N, {inner}]",
            got=type(scores).__name__,
            cure="pass apply=, e.g. to take .logits",
        )
    if scores.ndim != 2 + per_position or len(scores) != n or not scores.is_floating_point():
        refuse(
            "scores",
            expected=f"a float tensor [{n}, {inner}]",
            got=f"{scores.dtype} {list(scores.shape)}",
            cure=f"pass apply= that returns one row of scores per {row}",
        )
    return scores


def _refuse_keys(what: str, got: Mapping[str, object], expected: Mapping[str, object]) -> None:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    refuse(
        what,
        expected=f"the {len(expected)} names of the model",
        got=f"{len(missing)} missing {missing[:3]}, {len(extra)} extra {extra[:3]}",
        cure="use the parameters of the same architecture",
    )


def check_params(params: Params, like: Params | None = None, *, what: str = "parameters") -> None:
    """Check that parameters are finite float tensors and, given ``like``, have its names and shapes.

    Raises:
        InputError: no parameters, a tensor that is not floating point or not finite, other names, shapes or
            dtypes.
    """
    if not params:
        refuse(what, expected="at least one tensor", got="none", cure="pass the parameters of a model")
    if like is not None and params.keys() != like.keys():
        _refuse_keys(what, params, like)
    for name, value in params.items():
        _check_tensor(f"{what} {name!r}", value, None if like is None else like[name])


def check_displacement(displacement: Params, params: Params, *, what: str = "displacement") -> None:
    """Check a displacement of ``params``: known names only (missing ones mean 0), same layout, finite.

    Raises:
        InputError: as :func:`check_params`, except that names may be missing.
    """
    extra = sorted(displacement.keys() - params.keys())
    if extra:
        refuse(
            what,
            expected="names of parameters",
            got=f"unknown {extra[:3]}",
            cure="use names of the same model",
        )
    for name, value in displacement.items():
        _check_tensor(f"{what} {name!r}", value, params[name])


def _check_tensor(what: str, value: Tensor, like: Tensor | None) -> None:
    if not value.is_floating_point():
        refuse(what, expected="a float tensor", got=value.dtype, cure="leave integer tensors out")
    if like is not None and (value.shape, value.dtype) != (like.shape, like.dtype):
        refuse(
            what,
            expected=f"{like.dtype} {list(like.shape)}",
            got=f"{value.dtype} {list(value.shape)}",
            cure="use tensors of the same model and dtype",
        )
    # Extremes carry NaN and infinity along, in one pass: 30 times faster than isfinite over every entry.
    if value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value.detach()))).all():
        refuse(what, expected="finite values", got="NaN or infinity", cure="check the checkpoint it came from")


def check_inputs(inputs: Inputs) -> int:
    """Return the number of examples N.

    Raises:
        InputError: no tensors, no examples, or tensors of different leading sizes.
    """
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in leaves(inputs)}
    if len(sizes) != 1 or 0 in sizes:
        refuse(
            "inputs",
            expected="one positive number of examples (the leading axis)",
            got=sorted(sizes) or "no tensors",
            cure="pass at least one example and align the tensors",
        )
    return sizes.pop()


def check_blocks(params: Params, blocks: Blocks | None) -> dict[str, tuple[str, ...]]:
    """Return ``blocks`` as a dictionary; by default one block, named ``"model"``, with every parameter.

    Raises:
        InputError: the blocks are not a partition of the parameters (unknown, repeated or missing names).
    """
    if blocks is None:
        return {WHOLE_MODEL: tuple(params)}
    names = [name for members in blocks.values() for name in members]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    unknown, missing = sorted(set(names) - params.keys()), sorted(params.keys() - set(names))
    if repeated or unknown or missing:
        refuse(
            "blocks",
            expected="a partition of the parameters",
            got=f"repeated {repeated[:3]}, unknown {unknown[:3]}, missing {missing[:3]}",
            cure="name every parameter in exactly one block",
        )
    return {block: tuple(members) for block, members in blocks.items()}


def memory_budget(budget_bytes: int | None = None) -> int:
    """Return the working memory in bytes: the argument, else ``MERGEBOUND_MEMORY_BYTES``, else 1 GiB.

    Raises:
        InputError: the value is not a positive whole number.
    """
    given = os.environ.get(MEMORY_VARIABLE) if budget_bytes is None else budget_bytes
    if given is None:
        return DEFAULT_MEMORY_BYTES
    try:
        budget = int(given)
    except ValueError:
        budget = 0
    if budget < 1:
        refuse(
            "memory budget",
            expected="a positive whole number of bytes",
            got=repr(given),
            cure=f"pass budget_bytes or set {MEMORY_VARIABLE}, e.g. 1073741824",
        )
    return budget


def chunk_size(bytes_per_item: int, budget_bytes: int) -> int:
    """Return how many items of ``bytes_per_item`` fit into ``budget_bytes``; at least 1, since one must."""
    return max(1, budget_bytes // max(1, bytes_per_item))


def batches(inputs: Inputs, batch_size: int) -> Iterator[Inputs]:
    """Yield consecutive batches of at most ``batch_size`` examples; the last one may be smaller.

    Raises:
        InputError: ``batch_size`` < 1, or no examples.
    """
    if batch_size < 1:
        refuse("batch size", expected="at least 1", got=batch_size, cure="pass a positive batch size")
    for start in range(0, check_inputs(inputs), batch_size):
        yield take(inputs, slice(start, start + batch_size))


def parameter_bytes(params: Params, names: Sequence[str] | None = None) -> int:
    """Return the size in bytes of the named parameters (default: all of them)."""
    chosen = params.values() if names is None else (params[name] for name in names)
    return sum(value.numel() * value.element_size() for value in chosen)
