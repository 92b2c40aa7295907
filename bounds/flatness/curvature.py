"""Curvature of the mean loss: Hessian and Gauss-Newton matrix in weights, the Hessian in coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from bounds.autodiff import check_blocks, check_displacement, check_inputs, differentiable, jvp, without_jit_warning
from bounds.flatness.loss import Loss, pointwise, prepare
from bounds.flatness.radius import coefficient_gradient
from bounds.jacobian import BATCH_SIZE, spans
from bounds.lanczos import largest_eigenvalues, top_eigenpair
from bounds.scores import cross_entropy, mean_cross_entropy
from bounds.types import Blocks, Estimate, Forward, Inputs, Params, Sample, refuse

with without_jit_warning():
    from curvlinops import GGNLinearOperator, HessianLinearOperator

Matrix: TypeAlias = Literal["hessian", "ggn"]
Operator: TypeAlias = HessianLinearOperator | GGNLinearOperator


class _Network(nn.Module):
    """A Forward as the module that curvlinops expects; shares memory with the parameters."""

    def __init__(self, forward: Forward, params: Params) -> None:
        super().__init__()
        self.names = list(params)
        self.function = forward
        self.weights = nn.ParameterList([nn.Parameter(value.detach()) for value in params.values()])

    def forward(self, inputs: Inputs) -> Tensor:
        return self.function(dict(zip(self.names, self.weights, strict=True)), inputs)


class _Hessian(HessianLinearOperator):
    """curvlinops' Hessian with products by ``jvp`` of ``grad``.

    Upstream takes ``jvp`` of ``jacrev``, and PyTorch (2.15) silently drops part of the second derivative with
    respect to the weights of a layer norm there (as it does in ``grad`` of ``jvp``).
    """

    def _matmat_batch(self, X: Inputs, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        network = self._model_func
        assert isinstance(network, _Network)
        weights = {name: weight.detach() for name, weight in zip(network.names, network.weights, strict=True)}

        def total(values: Params) -> Tensor:
            return mean_cross_entropy(network.function(values, X), y)

        def product(tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found = jvp(torch.func.grad(total), weights, dict(zip(network.names, tangents, strict=True)))[1]
            return tuple(found[name] for name in network.names)

        with torch.no_grad():
            columns = [product(tuple(m[..., k] for m in M)) for k in range(M[0].shape[-1])]
        return [torch.stack(entries, dim=-1) for entries in zip(*columns, strict=True)]


def operator(
    forward: Forward,
    params: Params,
    sample: Sample,
    matrix: Matrix = "hessian",
    *,
    batch_size: int = BATCH_SIZE,
) -> Operator:
    """Return the curvature of the mean cross-entropy over the sample as a curvlinops operator [P, P].

    ``operator @ v`` must be called under :func:`bounds.autodiff.differentiable`.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ, in whose order the P numbers are laid out.
        sample: N labelled examples.
        matrix: ``hessian`` (∇²L̂) or ``ggn`` (mean of J^T (diag p - pp^T) J, positive semi-definite).
        batch_size: examples per product.

    Returns:
        A curvlinops linear operator.

    Raises:
        InputError: bad parameters, sample, labels, matrix or batch size.

    Source: curvlinops. Status: exact for the sample.
    """
    kinds = {"hessian": _Hessian, "ggn": GGNLinearOperator}
    if matrix not in kinds:
        refuse("matrix", expected=" or ".join(kinds), got=repr(matrix), cure="use one of them")
    if batch_size < 1:
        refuse("batch size", expected="at least 1", got=batch_size, cure="pass a positive batch size")
    with torch.no_grad(), differentiable():
        labels = prepare(forward, params, sample)
    network = _Network(forward, params)
    data = []
    for span in spans(len(sample), batch_size):
        inputs = sample.take(span).inputs
        data.append((inputs if isinstance(inputs, Tensor) else dict(inputs), labels[span]))
    return kinds[matrix](
        network,
        nn.CrossEntropyLoss(),
        list(network.weights),
        data,
        check_deterministic=False,
        num_data=len(sample),
        batch_size_fn=check_inputs,
    )


def top_eigenvalue(
    forward: Forward,
    params: Params,
    sample: Sample,
    matrix: Matrix = "hessian",
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float | None = None,
) -> float:
    """Largest (most positive) eigenvalue of the Hessian or the Gauss-Newton matrix, by Lanczos iterations.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        sample: N labelled examples.
        matrix: ``hessian`` or ``ggn``.
        batch_size: examples per product.
        tolerance: relative tolerance of scipy's ``eigsh`` (default: 1e-10 in float64, else 1e-5).

    Returns:
        λ_max, in nats per squared unit of weight.

    Raises:
        InputError: as :func:`operator`.

    Source: scipy's eigsh on curvlinops. Status: exact up to the tolerance.
    """
    curvature = operator(forward, params, sample, matrix, batch_size=batch_size)
    like = next(iter(params.values()))
    with differentiable():
        size = curvature.shape[0]
        values = largest_eigenvalues(lambda v: _multiply(curvature, v), size, 1, like=like, tolerance=tolerance)
    return float(values[0])


def top_curvature(
    forward: Forward,
    params: Params,
    sample: Sample,
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float | None = None,
) -> Estimate:
    """Largest eigenvalue of the Hessian of the mean loss, with its standard error over the examples.

    λ_max = vᵀ(mean of H_i)v for its eigenvector v of norm 1, and dλ_max = vᵀ dH v to first order, so that its error
    is that of the mean of the examples' curvatures vᵀH_i v along v. That v was found on the same examples is left out:
    with few of them λ_max is too large.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        sample: N labelled examples, at least 2.
        batch_size: examples per product.
        tolerance: relative tolerance of scipy's ``eigsh``, as in :func:`top_eigenvalue`.

    Returns:
        Estimate, in nats per squared unit of weight; n is the number of examples.

    Raises:
        InputError: as :func:`operator`, or fewer than 2 examples.

    Source: first-order perturbation of a simple eigenvalue. Status: estimated.
    """
    if len(sample) < 2:
        refuse("sample", expected="at least 2 examples", got=len(sample), cure="a standard error needs more")
    curvature, like = operator(forward, params, sample, batch_size=batch_size), next(iter(params.values()))
    with torch.no_grad(), differentiable():
        labels = prepare(forward, params, sample)
        value, vector = top_eigenpair(
            lambda v: _multiply(curvature, v), curvature.shape[0], like=like, tolerance=tolerance
        )
        pieces = vector.split([p.numel() for p in params.values()])
        along = {name: piece.view_as(p) for (name, p), piece in zip(params.items(), pieces, strict=True)}
        curvatures = []
        for i in range(len(sample)):
            one = slice(i, i + 1)
            product = _hessian_product(forward, params, sample.take(one), labels[one], along, cross_entropy)
            curvatures.append(sum(float((along[name].double() * product[name].double()).sum()) for name in along))
    error = Estimate.of_mean(torch.tensor(curvatures, dtype=torch.float64)).stderr
    return Estimate(value, error, len(sample), "estimated")


def _multiply(curvature: Operator, vector: Tensor) -> Tensor:
    product = curvature @ vector
    assert isinstance(product, Tensor)
    return product.detach()


def curvature_trace(
    forward: Forward,
    params: Params,
    sample: Sample,
    matrix: Matrix = "hessian",
    *,
    probes: int = 16,
    generator: Generator | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Trace of the Hessian or the Gauss-Newton matrix by Hutchinson's estimator with random signs.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        sample: N labelled examples.
        matrix: ``hessian`` or ``ggn``.
        probes: number of matrix-vector products, at least 2.
        generator: CPU source of the probes (default: torch's global generator).
        batch_size: examples per product.

    Returns:
        Estimate with the probes' standard error; n is the number of probes.

    Raises:
        InputError: as :func:`operator`, or fewer than 2 probes.

    Source: Hutchinson 1990, on curvlinops. Status: estimated (for the sample, by probes).
    """
    if probes < 2:
        refuse("probes", expected="at least 2", got=probes, cure="a standard error needs more")
    curvature = operator(forward, params, sample, matrix, batch_size=batch_size)
    like = next(iter(params.values()))
    values = []
    with differentiable():
        for _ in range(probes):
            signs = (torch.randint(0, 2, (curvature.shape[0],), generator=generator) * 2 - 1).to(like)
            values.append((signs.double() @ _multiply(curvature, signs).double()).cpu())
    return Estimate.of_mean(torch.stack(values))


def coefficient_hessian(
    forward: Forward,
    params: Params,
    sample: Sample,
    directions: Sequence[Params],
    *,
    blocks: Blocks | None = None,
    loss: Loss = cross_entropy,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Hessian of the mean loss in merging coefficients, λ ↦ L̂(θ + Σ_d Σ_b λ_{d,b} τ_{d,b}), at λ = 0.

    Weights are affine in λ, so this is τ^T ∇²L̂ τ: a Hessian-vector product (forward over reverse) along each
    τ_{d,b}, contracted with all of them. Pass the merged weights as ``params`` for the Hessian at a merge.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ, the point.
        sample: N labelled examples.
        directions: D task vectors; names that are missing from one count as 0.
        blocks: the partition that has a coefficient each (default: one block).
        loss: (scores, labels) -> losses [N] (default: cross-entropy).
        batch_size: examples per product.

    Returns:
        [D·B, D·B], float64, symmetric (averaged with its transpose); the index of (d, b) is d·B + b.

    Raises:
        InputError: bad parameters, sample, labels, directions, blocks or loss.

    Source: chain rule. Status: exact for the sample.
    """
    partition = check_blocks(params, blocks)
    if not directions:
        refuse("directions", expected="at least one", got="none", cure="pass the task vectors")
    for index, direction in enumerate(directions):
        check_displacement(direction, params, what=f"direction {index}")
    rows = []
    with torch.no_grad(), differentiable():
        labels = prepare(forward, params, sample)
        for direction in directions:
            for names in partition.values():
                tangent = {name: direction[name] for name in names if name in direction}
                row = torch.zeros(len(directions), len(partition), dtype=torch.float64)
                for span in spans(len(sample), batch_size) if tangent else ():
                    product = _hessian_product(forward, params, sample.take(span), labels[span], tangent, loss)
                    row += coefficient_gradient(product, directions, partition) / len(sample)
                rows.append(row.flatten())
    hessian = torch.stack(rows)
    return (hessian + hessian.T) / 2


def _hessian_product(
    forward: Forward, params: Params, batch: Sample, labels: Tensor, tangent: Params, loss: Loss
) -> dict[str, Tensor]:
    """Hessian of the summed loss times ``tangent``."""

    def total(p: Params) -> Tensor:
        return pointwise(loss, forward(p, batch.inputs), labels).sum()

    def gradient(moving: Params) -> dict[str, Tensor]:
        return torch.func.grad(total)({**params, **moving})

    moving = {name: params[name] for name in tangent}
    return jvp(gradient, moving, tangent)[1]
