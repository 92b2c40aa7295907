"""Running statistics of normalisation layers as part of θ: a network is its parameters and what it learned of the data.

Batch normalisation (and instance normalisation that tracks) keeps a mean and a variance per channel in buffers. They
are estimated from training data, they differ between experts, and scores depend on them as on any weight. So they are
entries of θ: ``X.running_mean``, and ``X.running_log_variance`` = ln(running_var + eps), in which every real number
is a variance and the network is smooth; averaging it is a geometric mean of (variance + eps). Everything that is said
about f_θ (merges, task vectors, Jacobians, noise) then holds for them, too.

PyTorch does not differentiate batch normalisation in its statistics; the forward functions of this package therefore
compute x ↦ (x - mean)·(var + eps)^(-1/2)·weight + bias themselves (:class:`Explicit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bounds.types import Forward, Inputs, Params, refuse

MEAN, VARIANCE, LOG_VARIANCE = "running_mean", "running_var", "running_log_variance"


def is_statistic(name: str) -> bool:
    """Whether an entry of θ is a running statistic."""
    return name.rpartition(".")[2] in (MEAN, LOG_VARIANCE)


def tracking(module: nn.Module) -> dict[str, Any]:
    """Return name -> layer for the layers that keep running statistics."""
    kinds = nn.modules.batchnorm._NormBase
    return {n: part for n, part in module.named_modules() if isinstance(part, kinds) and part.running_mean is not None}


def entries(module: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return θ of a module: its float parameters, tied ones once, and running statistics, in the module's order.

    Args:
        module: the network.
        weights: its parameters and buffers by name, as in its ``state_dict``; by default the module's own, which θ then
            shares memory with. Names of no parameter or buffer of the module are ignored.

    Raises:
        InputError: weights that lack a parameter or statistic, give tied parameters different values, or another value
            of a float buffer that is no running statistic (θ could not carry it).
    """
    own = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    given = own if weights is None else weights
    aliases: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(value), []).append(name)
    layers, result = tracking(module), {}
    for name in _order(module, layers):
        layer, _, last = name.rpartition(".")
        if last in (MEAN, LOG_VARIANCE) and layer in layers:
            value = _one([_join(layer, MEAN if last == MEAN else VARIANCE)], given)
            result[name] = value if last == MEAN else (value + layers[layer].eps).log()
        else:
            result[name] = _one(aliases[id(own[name])], given)
    if weights is not None:
        _check_buffers(module, layers, weights)
    return result


def state(module: nn.Module, params: Params) -> dict[str, Tensor]:
    """Return θ as a state dict of the module: the way back from :func:`entries`.

    Tied parameters stand under each of their names, and what θ does not hold (integer buffers, constants) is the
    module's. A variance is exp(log variance) - eps; an extrapolation may leave it below 0, by less than eps.

    Raises:
        InputError: other names than the module's.
    """
    layers, names = tracking(module), list(_order(module, tracking(module)))
    if sorted(params) != sorted(names):
        wrong = sorted({*params} ^ {*names})[:3]
        refuse("parameters", expected="the names of the module", got=f"a difference in {wrong}", cure="use its layout")
    result = {name: value.detach() for name, value in module.state_dict().items()}
    first: dict[int, str] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if (source := first.setdefault(id(value), name)) in params:
            result[name] = params[source]
    for layer, part in layers.items():
        result[_join(layer, MEAN)] = params[_join(layer, MEAN)]
        result[_join(layer, VARIANCE)] = params[_join(layer, LOG_VARIANCE)].exp() - part.eps
    return result


def tensors(module: nn.Module, params: Params) -> dict[str, Tensor]:
    """Return θ as the module's own parameters and buffers, name -> tensor, for ``torch.func.functional_call``."""
    result = dict(params)
    for layer, part in tracking(module).items():
        result[_join(layer, VARIANCE)] = result.pop(_join(layer, LOG_VARIANCE)).exp() - part.eps
    return result


def reestimated(
    forward: Forward, params: Params, inputs: Inputs, kept: AbstractSet[str] = frozenset()
) -> dict[str, Tensor]:
    """Return θ with the running statistics that one batch of inputs gives, layer after layer.

    Every layer normalises by what is taken there: the batch's mean and unbiased variance, of instance normalisation the
    means over examples of theirs. Source:
    the correction of merged networks in REPAIR (Jordan et al., arXiv 2211.08403) for networks with batch normalisation.
    ``forward`` must come from :func:`bounds.autodiff.functional`. A layer one of whose statistics is in ``kept`` (names
    of θ) normalises by what it has, and keeps it. Exact for these inputs.
    """
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    names = {id(value): name.rpartition(".")[0] for name, value in params.items() if name.rpartition(".")[2] == MEAN}
    names = {key: layer for key, layer in names.items() if not {_join(layer, s) for s in (MEAN, LOG_VARIANCE)} & kept}

    def take(x: Tensor, mean: Tensor, eps: float, instances: bool) -> tuple[Tensor, Tensor] | None:
        if id(mean) not in names:
            return None
        axes = [axis for axis in range(2 if instances else 0, x.ndim) if axis != 1]
        new = x.mean(axes), x.var(axes, correction=1)
        new = (new[0].mean(0), new[1].mean(0)) if instances else new
        found[names[id(mean)]] = (*new, eps)
        return new

    token = _taking.set(take)
    try:
        with torch.no_grad():
            forward(params, inputs)
    finally:
        _taking.reset(token)
    result = dict(params)
    for layer, (mean, variance, eps) in found.items():
        result[_join(layer, MEAN)] = mean.to(params[_join(layer, MEAN)])
        result[_join(layer, LOG_VARIANCE)] = (variance + eps).log().to(params[_join(layer, LOG_VARIANCE)])
    return result


_taking: ContextVar[Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor] | None] | None] = ContextVar(
    "taking", default=None
)


class Explicit(TorchFunctionMode):
    """Computes normalisation by running statistics step by step, so that it is differentiable in them, in any mode."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace ``F.batch_norm`` and ``F.instance_norm`` where they use running statistics."""
        kwargs = kwargs or {}
        if func is F.batch_norm and not _argument(args, kwargs, 5, "training", False):
            return _normalised(args, kwargs)
        if func is F.instance_norm and not _argument(args, kwargs, 5, "use_input_stats", True):
            return _normalised(args, kwargs, instances=True)
        return func(*args, **kwargs)


@contextmanager
def explicit(needed: bool) -> Iterator[None]:
    """Compute by :class:`Explicit` inside the block, where it is needed."""
    if not needed:
        yield
        return
    with Explicit():
        yield


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _normalised(args: Sequence[Any], kwargs: Mapping[str, Any], *, instances: bool = False) -> Tensor:
    names = ("input", MEAN, VARIANCE, "weight", "bias")
    x, mean, variance, weight, bias = (_argument(args, kwargs, i, name, None) for i, name in enumerate(names))
    eps = _argument(args, kwargs, 7, "eps", 1e-5)
    if (take := _taking.get()) is not None:
        mean, variance = take(x, mean, eps, instances) or (mean, variance)
    shape = (-1, *(1,) * (x.ndim - 2))
    result = (x - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    return result if bias is None else result + bias.view(shape)


def _order(module: nn.Module, layers: Mapping[str, Any]) -> Iterator[str]:
    """Names of θ: every module's own float parameters, then its statistics; tied ones at their first place."""
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_floating_point() and id(value) not in seen:
                seen.add(id(value))
                yield _join(prefix, name)
        if prefix in layers:
            yield from (_join(prefix, MEAN), _join(prefix, LOG_VARIANCE))


def _one(names: Sequence[str], given: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that stands under one of the names, or under several, then with one value."""
    found = [name for name in names if name in given]
    if not found:
        refuse("weights", expected=f"{names[0]}", got="nothing of that name", cure="load them with the model's layout")
    first = given[found[0]].detach()
    for name in found[1:]:
        if given[name] is not given[found[0]] and not torch.equal(first, given[name].detach()):
            tied = f"{found[0]} and {name}"
            refuse(f"weights {tied}", expected="one value: the model ties them", got="two", cure="untie the model")
    return first


def _check_buffers(module: nn.Module, layers: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    statistics = {_join(layer, last) for layer in layers for last in (MEAN, VARIANCE)}
    for name, value in module.named_buffers():
        other = weights.get(name)
        if other is None or name in statistics or not value.is_floating_point() or other is value:
            continue
        if other.shape != value.shape or not torch.equal(other.to(value), value):
            refuse(
                f"buffer {name}",
                expected="one value in every model: it is neither a parameter nor a running statistic",
                got="another one than the base model's",
                cure="make it a parameter of the module, or leave it out of the experts",
            )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
