"""Traces of the neural tangent kernel's blocks per example: exactly, or by random probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from bounds.autodiff import (
    check_blocks,
    check_inputs,
    check_params,
    chunk_size,
    differentiable,
    memory_budget,
    parameter_bytes,
)
from bounds.jacobian import (
    basis_of_scores,
    directional,
    example_spans,
    norm_stream,
    row_function,
    spans,
    squared_norms,
)
from bounds.types import Blocks, Estimate, Forward, Inputs, Params, refuse

TraceMethod = Literal["exact", "hutchinson", "hutch++"]


@dataclass(frozen=True)
class KernelTrace:
    """Traces of K_b(x, x): ``values`` and probe standard errors ``stderr`` [N, B], float64 (0 when exact).

    ``blocks`` are the B block names and ``method`` says how the values were obtained.
    """

    values: Tensor
    stderr: Tensor
    blocks: tuple[str, ...]
    method: TraceMethod

    def estimates(self, *, whole_sample: bool = False) -> dict[str, Estimate]:
        """Sample mean κ̂_b of every block.

        Args:
            whole_sample: the examples are all of S_t, so that κ̂_b is their mean by definition: an exact
                method then gives an exact value, a method with probes the probes' error. Otherwise the
                examples are a subsample and the standard error is that of their mean (which contains the
                probes' error).

        Returns:
            Block name -> Estimate with n = N.

        Source: docs/theory.md, section 0 (κ̂). Status: exact for the whole sample without probes, else
        estimated.
        """
        n = len(self.values)
        if not whole_sample:
            return {b: Estimate.of_mean(self.values[:, i]) for i, b in enumerate(self.blocks)}
        means, errors = self.values.mean(0), self.stderr.square().sum(0).sqrt() / n
        status = "exact" if self.method == "exact" else "estimated"
        return {b: Estimate(float(means[i]), float(errors[i]), n, status) for i, b in enumerate(self.blocks)}


def trace(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    *,
    blocks: Blocks | None = None,
    centred: bool = True,
    method: TraceMethod = "exact",
    probes: int = 16,
    generator: Generator | None = None,
    budget_bytes: int | None = None,
    vectorize: bool = False,
) -> KernelTrace:
    """Trace of the kernel block K_b(x, x) for every example and parameter block.

    ``exact`` costs C - 1 (uncentred: C) vmapped backward passes per example. ``hutchinson`` replaces the
    basis by ``probes`` random signs per example (independent between examples); ``hutch++`` spends a third of
    them on a sketch of the range of Σ_b K_b, whose trace it takes exactly, and pays off when C is large and K
    has few large eigenvalues. Both are unbiased for every block.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs: N examples.
        blocks: a partition of the parameters into B blocks (default: one block, ``"model"``).
        centred: tr ΠKΠ in place of tr K (docs/theory.md, section 0).
        method: ``exact``, ``hutchinson`` or ``hutch++``.
        probes: backward passes per example of the two random methods (at least 2, hutch++ at least 4).
        generator: CPU source of the probes (default: torch's global generator).
        budget_bytes: memory for Jacobian rows (default: see :func:`bounds.autodiff.memory_budget`).
        vectorize: also vmap over examples (not with hutch++); see :func:`example_blocks`.

    Returns:
        KernelTrace: [N, B] values with standard errors; no reduction over examples.

    Raises:
        InputError: bad parameters, inputs, blocks, budget, method or number of probes.

    Source: docs/theory.md, section 0 and Lemma 3; hutch++: Meyer, Musco, Musco & Woodruff 2021.
    Status: exact, or estimated by the two random methods.
    """
    partition = check_blocks(params, blocks)
    check_params(params)
    n, budget = check_inputs(inputs), memory_budget(budget_bytes)
    _check_method(method, probes)
    limit = chunk_size(parameter_bytes(params), budget)
    largest = chunk_size(max(parameter_bytes(params, [name]) for name in params), budget)
    values, errors = [], []
    with torch.no_grad(), differentiable():
        basis = basis_of_scores(forward, params, inputs, centred)
        per_example = basis.shape[1] if method == "exact" else probes
        vectorize = vectorize and method != "hutch++"
        at_once = chunk_size(per_example, limit) if vectorize else 1
        for span, examples in example_spans(inputs, n, at_once):
            if vectorize:
                reduce = _Norms(_squares(forward, params, examples, partition), basis, limit)
            else:
                together = limit >= per_example
                _, squares = norm_stream(forward, params, examples, partition, together=together)
                reduce = _Norms(lambda c, squares=squares: squares(c[0]).unsqueeze(0), basis, largest)
            if method == "exact":
                value = reduce(torch.eye(basis.shape[1]).expand(span.stop - span.start, -1, -1)).sum(1)
                error = torch.zeros_like(value)
            elif method == "hutchinson":
                signs = _signs((span.stop - span.start, probes, basis.shape[1]), generator)
                value, error = _mean(reduce(signs))
            else:
                value, error = _hutch_plus_plus(forward, params, examples, reduce, probes, limit, generator)
            values.append(value)
            errors.append(error)
    return KernelTrace(torch.cat(values), torch.cat(errors), tuple(partition), method)


@dataclass(frozen=True)
class _Norms:
    """Squared norms [n, r, B] of J^T B z for z [n, r, rank], at most ``limit`` rows in memory at a time.

    ``squares`` gives them for cotangents [n, r, C].
    """

    squares: Callable[[Tensor], Tensor]
    basis: Tensor
    limit: int

    def cotangents(self, coordinates: Tensor) -> Tensor:
        return coordinates.to(self.basis) @ self.basis.T

    def __call__(self, coordinates: Tensor) -> Tensor:
        cotangents = self.cotangents(coordinates)
        step = chunk_size(len(cotangents), self.limit)
        return torch.cat([self.squares(cotangents[:, p]) for p in spans(cotangents.shape[1], step)], dim=1)


def _squares(
    forward: Forward, params: Params, examples: Inputs, blocks: Mapping[str, Sequence[str]]
) -> Callable[[Tensor], Tensor]:
    """Return the function from cotangents [n, r, C] to squared norms [n, r, B], of several examples together."""
    rows = row_function(forward, params, list(params), examples, vectorize=True)
    return lambda cotangents: squared_norms(rows(cotangents), blocks)


def _hutch_plus_plus(
    forward: Forward,
    params: Params,
    example: Inputs,
    norms: _Norms,
    probes: int,
    limit: int,
    generator: Generator | None,
) -> tuple[Tensor, Tensor]:
    whole_rows = row_function(forward, params, list(params), example)
    rank = norms.basis.shape[1]
    sketched = min(probes // 3, rank)

    def push(row: dict[str, Tensor]) -> Tensor:
        return directional(forward, params, example, row)[1][0]

    def multiply(coordinates: Tensor) -> Tensor:
        rows = {name: value[0] for name, value in whole_rows(norms.cotangents(coordinates)).items()}
        return torch.vmap(push)(rows) @ norms.basis

    signs = _signs((1, sketched, rank), generator)
    sketch = torch.cat([multiply(signs[:, p]) for p in spans(sketched, limit)])
    range_, _ = torch.linalg.qr(sketch.T.double())
    found = norms(range_.T[None]).sum(1)
    # tr K_b = tr Q^T K_b Q + E z^T (I - QQ^T) K_b (I - QQ^T) z for any orthonormal Q, hence for every block.
    z = _signs((1, probes - 2 * sketched, rank), generator).to(range_)
    value, error = _mean(norms(z - z @ range_ @ range_.T))
    return found + value, error


def _signs(shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(1), values.std(1) / values.shape[1] ** 0.5


def _check_method(method: str, probes: int) -> None:
    minimum = {"exact": 0, "hutchinson": 2, "hutch++": 4}
    if method not in minimum:
        refuse("method", expected=" or ".join(minimum), got=repr(method), cure="use one of them")
    if probes < minimum[method]:
        refuse("probes", expected=f"at least {minimum[method]}", got=probes, cure="a standard error needs more")
