"""KnOTS and Core Space from task vectors against the same from low-rank factors; what they are where ranks are full."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, merge
from merging.closed_form import spectral
from merging.closed_form.shared_space import (
    INSIDE,
    AlignedSettings,
    CoreSettings,
    align,
    common_bases,
    in_core_space,
)
from merging.closed_form.tensors import thin_svd
from tests.tolerances import assert_near


def factors(ranks=(2, 2, 2), rows=9, columns=7):
    """B [m, r] and A [r, n] of each task, of sizes that have nothing to do with each other: LoRA's B starts at 0."""
    scales = torch.logspace(-2, 2, len(ranks), dtype=torch.float64)
    return [
        (scale * torch.randn(rows, rank, dtype=torch.float64), torch.randn(rank, columns, dtype=torch.float64) / scale)
        for rank, scale in zip(ranks, scales, strict=True)
    ]


def products(pairs):
    return torch.stack([b @ a for b, a in pairs])


def ties(parts, density):
    """TIES of parts [T, N], entry by entry in plain Python."""
    tasks, size = parts.shape
    kept = round(density * size)
    least = [sorted(abs(x) for x in row)[size - kept] for row in parts.tolist()]
    merged = []
    for values in parts.T.tolist():
        values = [x if abs(x) >= least[t] else 0.0 for t, x in enumerate(values)]
        same = [x for x in values if x * sum(values) > 0]
        merged.append(sum(same) / len(same) if same else 0.0)
    assert tasks == len(least)
    return torch.tensor(merged, dtype=torch.float64)


def knots_of_factors(layers, density, weighted):
    """KnOTS-TIES without ever forming τ: U and Σ from the k x k matrix R diag(A_t A_tᵀ) Rᵀ, with [B_1 ... B_T] = QR."""
    bases, parts, shapes = [], [], []
    for pairs in layers:
        q, r = torch.linalg.qr(torch.cat([b for b, _ in pairs], dim=1))
        inner = torch.block_diag(*[a @ a.T for _, a in pairs])
        values, vectors = torch.linalg.eigh(r @ inner @ r.T)
        sigma, u = values.sqrt(), q @ vectors
        own = torch.stack([(u.T @ b) @ a / sigma[:, None] for b, a in pairs])
        bases.append(u if weighted else u * sigma)
        parts.append(sigma[:, None] * own if weighted else own)
        shapes.append(own.shape[1:])
    merged = ties(torch.cat([part.flatten(1) for part in parts], dim=1), density)
    split = merged.split([shape.numel() for shape in shapes])
    return [basis @ part.reshape(shape) for basis, part, shape in zip(bases, split, shapes, strict=True)]


def vectors(*stacked):
    """Task vectors of the tensors w0, w1, ... [T, ...] on θ_0 = 0."""
    base = {f"w{i}": torch.zeros_like(value[0]) for i, value in enumerate(stacked)}
    deltas = [{f"w{i}": value[t] for i, value in enumerate(stacked)} for t in range(len(stacked[0]))]
    return TaskVectors(base, deltas, [f"task{t}" for t in range(len(deltas))])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_knots_of_task_vectors_is_knots_of_factors(density, weighted):
    layers = [factors(), factors((1, 3, 2), rows=8, columns=11)]
    tv = vectors(*map(products, layers))
    found = merge("knots", tv, (), density=density, weighted=weighted, scale=1.0).merged
    expected = knots_of_factors(layers, density, weighted)
    for name, value in zip(found, expected, strict=True):
        assert_near(found[name], value)
    other = merge("knots", tv, (), density=density, weighted=not weighted, scale=1.0).merged
    alone = merge("knots", vectors(products(layers[0])), (), density=density, weighted=weighted, scale=1.0).merged
    differs = not torch.allclose(found["w0"], other["w0"]), not torch.allclose(found["w0"], alone["w0"])
    assert differs == (density < 1, density < 1), "Σ matters to the trim alone, which is over all matrices"


def test_the_aligned_parts_give_the_task_vectors_and_their_mean_is_the_plain_average():
    deltas = torch.randn(3, 5, 4, dtype=torch.float64)
    for weighted in (False, True):
        basis, parts = align(deltas, weighted)
        assert_near(basis @ parts, deltas)
        assert_near(basis @ parts.mean(dim=0), deltas.mean(dim=0))
    u, parts = align(deltas, True)
    assert_near(u.T @ u, torch.eye(5, dtype=torch.float64))
    rows = torch.cat(list(align(deltas, False)[1]), dim=1)
    assert_near(rows @ rows.T, torch.eye(5, dtype=torch.float64))


def test_equal_experts_agree_in_every_aligned_entry():
    """In the weights themselves two experts of orthogonal rows would never meet; aligned along rows they do."""
    tv = vectors(torch.randn(1, 6, 4, dtype=torch.float64).expand(3, -1, -1))
    assert_near(merge("knots", tv, (), density=1.0, scale=1.0).merged["w0"], tv.deltas[0]["w0"])


def numpy_tsv(cores, count):
    triplets = [
        (s[i], u[:, i], vh[i])
        for u, s, vh in (np.linalg.svd(core, full_matrices=False) for core in cores)
        for i in range(count)
        if s[i] > 1e-10
    ]

    def whitened(columns):
        matrix = np.stack(columns, axis=1)
        values, basis = np.linalg.eigh(matrix.T @ matrix)
        return matrix @ basis @ np.diag(values**-0.5) @ basis.T

    left, right = whitened([t[1] for t in triplets]), whitened([t[2] for t in triplets])
    return left @ np.diag([t[0] for t in triplets]) @ right.T


def numpy_iso(matrix):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-10).sum())
    return s[:rank].mean() * u[:, :rank] @ vh[:rank]


def core_of_factors(pairs, inside):
    """Core Space as the paper has it: bases by SVDs of the factors as they are, cores (U_BᵀB_t)(A_t V_A)."""
    left = np.linalg.svd(np.concatenate([b.numpy() for b, _ in pairs], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([a.numpy() for _, a in pairs]), full_matrices=False)[2].T
    cores = [(left.T @ b.numpy()) @ (a.numpy() @ right) for b, a in pairs]
    count = min(cores[0].shape) // len(pairs)
    merged = numpy_iso(sum(cores)) if inside == "iso_c" else numpy_tsv(cores, count)
    return torch.from_numpy(left @ (numpy_iso(merged) if inside == "tsv_iso" else merged) @ right.T)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 3), (3, 3)])
def test_core_space_of_task_vectors_is_core_space_of_factors(ranks, inside):
    pairs = factors(ranks)
    found = merge("core_space", vectors(products(pairs)), (), inside=inside, scale=1.0).merged["w0"]
    assert_near(found, core_of_factors(pairs, inside))


def test_experts_that_share_directions_still_have_cores_of_the_papers_size():
    """One A for all, as LoRA from a shared seed nearly has: cores of 6 x 6 of which 6 x 2 are filled."""
    pairs = [(b, factors()[0][1]) for b, _ in factors()]
    deltas = products(pairs)
    assert common_bases(deltas)[1].shape == (7, 6)
    shared = products([(b, pairs[0][1]) for b, _ in pairs])
    left, right, ranks = common_bases(shared)
    assert (left.shape, right.shape, ranks) == ((9, 6), (7, 2), 6)
    assert_near(left @ (left.T @ shared @ right) @ right.T, shared)
    seen = []
    in_core_space(shared, lambda cores: seen.append(cores.shape) or cores[0])
    assert seen == [(3, 6, 6)]
    assert_near(in_core_space(shared, lambda cores: cores[1]), shared[1])


@pytest.mark.parametrize(("inside", "row"), [("tsv_m", spectral.task_singular_vectors), ("iso_c", spectral.isotropic)])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (7, 7, 7)])
def test_in_core_space_tsv_m_and_iso_c_are_themselves(inside, row, ranks):
    """They turn with the space, and here leave out directions of σ = 0: nothing is lost, nothing is won."""
    deltas = products(factors(ranks))
    assert_near(in_core_space(deltas, INSIDE[inside]), row(deltas))


def test_what_treats_entries_by_themselves_would_depend_on_the_factors():
    """TIES in core space is no function of τ: B·c, A/c are the same expert, but turn the bases."""
    pairs = factors((2, 2))
    merges = []
    for scale in (1.0, 1e4):
        rescaled = [(pairs[0][0] * scale, pairs[0][1] / scale), pairs[1]]
        assert_near(products(rescaled), products(pairs))
        left = torch.linalg.svd(torch.cat([b for b, _ in rescaled], dim=1), full_matrices=False)[0]
        right = torch.linalg.svd(torch.cat([a for _, a in rescaled]), full_matrices=False)[2].T
        cores = torch.stack([left.T @ b @ a @ right for b, a in rescaled])
        merges.append(left @ ties(cores.flatten(1), 0.5).view_as(cores[0]) @ right.T)
    assert float((merges[0] - merges[1]).norm()) > 0.05 * float(merges[0].norm())


def test_an_expert_stored_in_half_precision_has_lost_its_low_rank():
    b, a = factors((2,), rows=64, columns=48)[0]
    base, delta = 0.02 * torch.randn(64, 48), (b @ a).float()
    assert len(thin_svd((base + delta) - base)[1]) == 2
    assert len(thin_svd((base + delta).half().float() - base.half().float())[1]) > 24


def test_vectors_are_averaged_and_convolutions_are_matrices():
    bias, conv = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    for method in ("knots", "core_space"):
        found = merge(method, vectors(bias, conv), (), scale=1.0).merged
        flat = merge(method, vectors(conv.flatten(2)), (), scale=1.0).merged
        assert_near(found["w0"], bias.mean(dim=0))
        assert_near(found["w1"].flatten(1), flat["w0"])


def test_settings_out_of_range_are_refused():
    wrong: list[tuple[type, dict[str, Any]]] = [
        (AlignedSettings, {"density": 0.0}),
        (AlignedSettings, {"density": 1.5}),
        (CoreSettings, {"inside": "ties"}),
    ]
    for settings, values in wrong:
        with pytest.raises(InputError, match=f"{next(iter(values))}: expected"):
            settings(**values)
    assert all(a != b for a, b in itertools.pairwise(INSIDE.values()))
