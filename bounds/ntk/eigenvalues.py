"""Spectrum of the kernel's Gram matrix, and its drift between two sets of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from bounds.autodiff import check_inputs, check_params, differentiable
from bounds.jacobian import BATCH_SIZE, basis_of_scores, class_count, kernel_product
from bounds.lanczos import largest_eigenvalues
from bounds.ntk.gram_matrix import gram
from bounds.ntk.traces import trace
from bounds.types import Estimate, Forward, Inputs, Params, refuse


@dataclass(frozen=True)
class Spectrum:
    """Largest ``eigenvalues`` [k] (descending, float64), ``trace`` and ``effective_rank`` = trace / λ_max."""

    eigenvalues: Tensor
    trace: float
    effective_rank: float


def spectrum(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    k: int,
    *,
    centred: bool = True,
    budget_bytes: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Spectrum:
    """Return the largest eigenvalues of the Gram matrix [N·C, N·C], and its effective rank.

    The matrix is not formed: Lanczos iterations (scipy's ``eigsh``) on kernel-vector products, one VJP and
    one JVP over all examples each, in the N·(C - 1) coordinates that centring leaves. The effective rank is
    tr K / λ_max: between 1 and the rank, how many directions of the largest eigenvalue would carry the same
    trace; 0 for K = 0. Nothing is divided by N.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs: N examples.
        k: number of eigenvalues, 1 <= k <= N·(C - 1) (uncentred: N·C).
        centred: ΠJ in place of J.
        budget_bytes: memory of the trace (and of the Gram matrix, formed when k is the whole dimension).
        batch_size: examples per VJP and JVP.

    Returns:
        Spectrum.

    Raises:
        InputError: bad parameters, inputs or k.

    Source: docs/theory.md, section 0. Status: exact up to the tolerance of eigsh (1e-5 relative in float32).
    """
    check_params(params)
    n = check_inputs(inputs)
    with torch.no_grad(), differentiable():
        basis = basis_of_scores(forward, params, inputs, centred)
        dimension = n * basis.shape[1]
        if not 1 <= k <= dimension:
            refuse("k", expected=f"1..{dimension}", got=k, cure="ask for fewer eigenvalues")

        def multiply(vector: Tensor) -> Tensor:
            scores = vector.view(n, -1) @ basis.T
            product = kernel_product(forward, params, inputs, scores, centred=False, batch_size=batch_size)
            return product @ basis

        if k == dimension:
            return gram_spectrum(gram(forward, params, inputs, centred=centred, budget_bytes=budget_bytes), k)
        diagonal = trace(forward, params, inputs, centred=centred, budget_bytes=budget_bytes)
        values = largest_eigenvalues(multiply, dimension, k, like=basis, which="LM")
    return _spectrum(values, float(diagonal.values.sum()))


def gram_spectrum(kernel: Tensor, k: int) -> Spectrum:
    """Return the k largest eigenvalues of a Gram matrix [N, C, N, C] that is there already.

    Source: docs/theory.md, section 0. Status: exact.
    """
    size = kernel.shape[0] * kernel.shape[1]
    matrix = kernel.reshape(size, size)
    return _spectrum(torch.linalg.eigvalsh(matrix).flip(0)[:k].cpu(), float(matrix.trace()))


def _spectrum(values: Tensor, total: float) -> Spectrum:
    top = float(values[0])
    return Spectrum(values, total, total / top if top > 0 else 0.0)


@dataclass(frozen=True)
class Drift:
    """How far the kernel moved: ``rotation`` S(K0, K1) in [0, 1], ``relative_change`` ‖K1 - K0‖ / ‖K0‖.

    Estimated by probes, ``rotation`` may leave [0, 1] (up to 2).
    """

    rotation: Estimate
    relative_change: Estimate


def drift(
    forward: Forward,
    params0: Params,
    params1: Params,
    inputs: Inputs,
    *,
    centred: bool = True,
    method: Literal["exact", "probes"] = "exact",
    probes: int = 16,
    generator: Generator | None = None,
    budget_bytes: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Drift:
    """Compare the Gram matrices at two points.

    S = 1 - ⟨K0, K1⟩ / (‖K0‖‖K1‖) and ‖K1 - K0‖ / ‖K0‖, Frobenius norms. ``probes`` replaces the matrices by
    K z for random signs z, the same for both: ⟨K0, K1⟩ = E ⟨K0 z, K1 z⟩.

    Args:
        forward: (θ, x) -> scores [N, C].
        params0: θ of K0.
        params1: θ of K1.
        inputs: N examples.
        centred: ΠJ in place of J.
        method: ``exact`` forms both matrices; ``probes`` needs two VJPs and two JVPs over all examples each.
        probes: number of probes, at least 2.
        generator: CPU source of the probes (default: torch's global generator).
        budget_bytes: memory for the Jacobian rows of ``exact``.
        batch_size: examples per VJP and JVP of ``probes``.

    Returns:
        Drift, with jackknife standard errors over the probes (n: examples for ``exact``, else probes).

    Raises:
        InputError: bad parameters, inputs, method or number of probes; a kernel that is 0.

    Source: docs/theory.md, section 6. Status: exact for the given examples, or estimated by probes.
    """
    check_params(params0)
    check_params(params1, params0)
    n = check_inputs(inputs)
    if method not in ("exact", "probes") or probes < 2:
        refuse("drift", expected="exact or probes >= 2", got=f"{method!r}, {probes}", cure="use one of them")
    if method == "exact":
        before = gram(forward, params0, inputs, centred=centred, budget_bytes=budget_bytes)
        after = gram(forward, params1, inputs, centred=centred, budget_bytes=budget_bytes)
        return gram_drift(before, after)
    products: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad(), differentiable():
        classes = class_count(forward, params0, inputs)
        for _ in range(probes):
            signs = torch.randint(0, 2, (n, classes), generator=generator) * 2 - 1
            z = signs.to(next(iter(params0.values())))
            for store, params in zip(products, (params0, params1), strict=True):
                product = kernel_product(forward, params, inputs, z, centred=centred, batch_size=batch_size)
                store.append(product.flatten().double())
    return _jackknife(torch.stack(products[0]), torch.stack(products[1]))


def gram_drift(before: Tensor, after: Tensor) -> Drift:
    """Compare two Gram matrices [N, C, N, C] that are there already: S and relative change, as :func:`drift`.

    Raises:
        InputError: a kernel that is 0.

    Source: docs/theory.md, section 6. Status: exact for the given examples.
    """
    rotation, change = _compare(before.flatten()[None], after.flatten()[None])
    return Drift(Estimate(rotation, 0.0, len(before)), Estimate(change, 0.0, len(before)))


def _compare(first: Tensor, second: Tensor) -> tuple[float, float]:
    """S and relative change from vectors [m, D]: K0 and K1 themselves, or K z for m probes."""
    norm0, norm1 = torch.linalg.vector_norm(first), torch.linalg.vector_norm(second)
    if not norm0 > 0 or not norm1 > 0:
        refuse("kernel", expected="a kernel that is not 0", got="0", cure="check the head and the parameters")
    # 1 - cos = ‖u - v‖²/2 of the normalised matrices: no cancellation when they nearly agree.
    rotation = float((first / norm0 - second / norm1).square().sum() / 2)
    return rotation, float(torch.linalg.vector_norm(second - first) / norm0)


def _jackknife(first: Tensor, second: Tensor) -> Drift:
    m = len(first)
    whole = _compare(first, second)
    keep = [torch.arange(m, device=first.device) != left_out for left_out in range(m)]
    without = torch.tensor([_compare(first[index], second[index]) for index in keep], dtype=torch.float64)
    errors = without.std(0, correction=0) * math.sqrt(m - 1)
    rotation, change = (Estimate(v, float(e), m, "estimated") for v, e in zip(whole, errors, strict=True))
    return Drift(rotation, change)
