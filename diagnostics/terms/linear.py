"""Everything the linearised network says about one task, from Jacobian products at θ_0 alone.

f^lin is linear in θ, so under a Gaussian posterior Q_j = N(θ_j, Σ_j) the scores of an example are Gaussian:
f^lin(x) ~ N(f_0(x) + J(x)τ_j, J(x)Σ_jJ(x)^T) with J Σ_j J^T = Σ_b σ_{j,b}² K_b(x, x). Every expectation of (5) over
Q_j is therefore an average over draws of C numbers per example; no weights are sampled and nothing is linearised twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import ntk
from bounds.autodiff import memory_budget, parameter_bytes
from bounds.linearize import jvp_scores
from bounds.scores import check_scores, cross_entropy, cross_entropy_slope
from bounds.types import Blocks, Params, Sample
from merging.task import Task, described


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """The linearised network on one task.

    ``held_out`` are N examples of the task's test split: ``scores0`` [N, C] = f_0, ``tangents`` [D, N, C] = J(x)d for
    each displacement d (τ_1..τ_T, then θ_m - θ_0), up to a constant for all scores of an example, which cross-entropy
    does not see, ``kernel`` [N, B, C, C] = per-block K_b(x, x) (centred).
    ``train_scores`` [n', C] = f^lin at the task's own expert on a subsample of S_t with ``train_labels`` (up to such a
    constant), and ``train_scores0`` = f_0 there;
    ``train_trace`` [M, B] = tr K_b on the first M of it.
    """

    held_out: Sample
    scores0: Tensor
    tangents: Tensor
    kernel: Tensor
    train_scores0: Tensor
    train_scores: Tensor
    train_labels: Tensor
    train_trace: Tensor

    @property
    def labels(self) -> Tensor:
        """Labels of the held-out examples [N], on the CPU like everything measured."""
        assert self.held_out.labels is not None, "the workspace asks for labels before it makes a world"
        return self.held_out.labels.cpu()

    def towards(self, tangents: Tensor) -> LinearTask:
        """Return the same world with one more displacement, last, whose J(x)d is ``tangents`` [N, C]."""
        return replace(self, tangents=torch.cat([self.tangents, tangents.unsqueeze(0)]))

    def part(self, examples: slice) -> LinearTask:
        """Return the same world on some of the held-out examples."""
        return replace(
            self,
            held_out=self.held_out.take(examples),
            scores0=self.scores0[examples],
            tangents=self.tangents[:, examples],
            kernel=self.kernel[examples],
        )

    def own_losses(self, scale: float = 1.0) -> Tensor:
        """Cross-entropy [n'] of f^lin at θ_0 + scale · τ of the task's own expert, on its training examples."""
        return losses(torch.lerp(self.train_scores0, self.train_scores, scale), self.train_labels)

    def scores(self, displacement: int, scale: float = 1.0) -> Tensor:
        """f^lin [N, C] at θ_0 + scale · displacement."""
        return self.scores0 + scale * self.tangents[displacement]

    def posterior_scores(
        self, anchor: int, sigma: Sequence[float], draws: int, seed: int, scale: float = 1.0
    ) -> Tensor:
        """Draws [S, N, C] of f^lin under N(θ_0 + scale · d, Σ_b σ_b² I) on held-out examples; d is number ``anchor``.

        Draws come in pairs mean ± noise, so that their mean is exactly f^lin at the anchor: heterogeneity, gap and
        gain then cancel on the sample as they do in the population (docs/theory.md (5a)).
        """
        variance = torch.as_tensor(sigma, dtype=self.kernel.dtype).square()
        covariance = torch.einsum("b,nbcd->ncd", variance, self.kernel)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn((draws + 1) // 2, *covariance.shape[:2], generator=generator, dtype=self.kernel.dtype)
        noise = torch.cat([half, -half])
        return self.scores(anchor, scale) + torch.einsum("nij,snj->sni", root, noise)

    def gradient_moments(self, scores: Tensor) -> Tensor:
        """E_Q‖∇_b ℓ^lin‖² of cross-entropy [N, B] from draws of the scores [S, N, C]: (p - e_y)^T K_b (p - e_y)."""
        errors = cross_entropy_slope(scores, self.labels)
        second = torch.einsum("snc,snd->ncd", errors, errors) / len(scores)
        return torch.einsum("ncd,nbcd->nb", second, self.kernel)


def losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per example [N], averaged over leading draws of scores [..., N, C]."""
    return cross_entropy(scores, labels).reshape(-1, len(labels)).mean(dim=0)


def on_held_out(
    task: Task, test: Sample, base: Params, displacements: Sequence[Params], blocks: Blocks
) -> dict[str, Tensor]:
    """Linearise one task at θ_0 on held-out examples; return ``scores0``, ``tangents`` and ``kernel``.

    The rows of J(x) that make the kernel make J(x)d of every displacement, too: no pass for each of them.

    Args:
        task: the task.
        test: its held-out examples, or some of them.
        base: θ_0.
        displacements: D directions in weight space.
        blocks: partition for kernels.
    """
    found = ntk.example_products(task.forward, base, test.inputs, _formed(displacements, base), blocks=blocks)
    check_scores(found.scores, len(test), len(task.class_names), described(task.name, "test", "pretrained"))
    return {
        "scores0": found.scores.double().cpu(),
        "tangents": found.derivatives.cpu(),
        "kernel": found.kernels.cpu(),
    }


def _formed(displacements: Sequence[Params], base: Params) -> Sequence[Params]:
    """Return displacements that are formed once and not for every example, where half of the memory budget holds them.

    Task vectors of experts in files are formed whenever they are asked for; those that are kept or mapped stay as they
    are.
    """
    fit = len(displacements) * parameter_bytes(base) <= memory_budget() // 2
    return [dict(displacement) for displacement in displacements] if fit else displacements


def on_training(
    task: Task, displacement: Params, base: Params, blocks: Blocks, *, kernel: int, train: int, seed: int
) -> dict[str, Tensor]:
    """Linearise one task at θ_0 on its expert's own sample; return ``train_...`` (labels where there are some).

    The rows that make the traces of the first examples make their J(x)τ, too; the others take a JVP.

    Args:
        task: the task.
        displacement: its expert's.
        base: θ_0.
        blocks: partition for kernels.
        kernel: examples M of S_t for the trace of the kernel.
        train: subsample of S_t for the expert's own risk.
        seed: of the subsample.
    """
    sample = subsample(task.train, train, seed)
    tau = _formed([displacement], base)
    traced = ntk.example_products(task.forward, base, sample.take(slice(kernel)).inputs, tau, blocks=blocks)
    scores, tangents = traced.scores, traced.derivatives[0].to(traced.scores)
    if len(sample) > kernel:
        rest = jvp_scores(task.forward, base, sample.take(slice(kernel, None)).inputs, tau)
        scores, tangents = torch.cat([scores, rest[0]]), torch.cat([tangents, rest[1][0]])
    check_scores(scores, len(sample), len(task.class_names), described(task.name, "train", "pretrained"))
    return {
        "train_scores0": scores.double().cpu(),
        "train_scores": (scores + tangents).double().cpu(),
        "train_trace": traced.kernels.diagonal(dim1=-2, dim2=-1).sum(dim=-1).cpu(),
        **({} if sample.labels is None else {"train_labels": sample.labels.cpu()}),
    }


def subsample(sample: Sample, size: int, seed: int) -> Sample:
    """Return ``size`` examples drawn without replacement (all of them, shuffled, if there are fewer)."""
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed))
    return sample.take(order[:size])
