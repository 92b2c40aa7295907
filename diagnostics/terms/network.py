"""What the real network says about the merge: risks, cross-risk under sampled posteriors, gradients at sampled weights.

This is the ``assumed-linear`` reading of (5), in which f stands where the theorem has f^lin. Posteriors are sampled in
weight space here; draw d of every posterior is evaluated on the d-th share of the held-out examples, so that standard
errors over examples contain the spread over draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.autodiff import check_inputs
from bounds.flatness import gradient_second_moment
from bounds.linearize import jvp_scores
from bounds.scores import check_scores, cross_entropy
from bounds.types import Blocks, Inputs, Params, Sample
from merging.params import subtract
from merging.task import Task, described, score_task


@dataclass(frozen=True)
class PosteriorDraws:
    """Scores of every task under sampled weights of every posterior.

    ``scores[i][j]`` [N_i, C_i]: task i's held-out examples under θ ~ Q_j (one draw per share of examples);
    ``gradients[j]`` [N_j, B]: per-example ‖∇_b ℓ‖² of task j under θ ~ Q_j; ``labels[i]`` [N_i];
    ``own[j]`` [n']: losses of the network at θ_j on a subsample of S_j.
    """

    scores: Sequence[Sequence[Tensor]]
    gradients: Sequence[Tensor]
    labels: Sequence[Tensor]
    own: Sequence[Tensor] = ()

    @property
    def losses(self) -> list[Tensor]:
        """Cross-entropy of every held-out example under every posterior, [N_i, T] per task."""
        return [
            torch.stack([cross_entropy(scores, labels) for scores in row], dim=1)
            for row, labels in zip(self.scores, self.labels, strict=True)
        ]

    def part(self, examples: slice) -> PosteriorDraws:
        """Return the same draws on some of the held-out examples."""
        return replace(
            self,
            scores=[[scores[examples] for scores in row] for row in self.scores],
            labels=[labels[examples] for labels in self.labels],
        )


def draw_weights(mean: Params, sigma: Sequence[float], blocks: Blocks, generator: torch.Generator) -> dict[str, Tensor]:
    """One draw of N(mean, Σ_b σ_b² I)."""
    scale = {name: s for s, names in zip(sigma, blocks.values(), strict=True) for name in names}
    return {
        name: value + scale[name] * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        for name, value in mean.items()
    }


def sample_posteriors(
    tasks: Sequence[Task],
    held_out: Sequence[Sample],
    means: Sequence[Params],
    sigmas: Sequence[Sequence[float]],
    blocks: Blocks,
    *,
    draws: int,
    seed: int,
    posteriors: Iterable[int],
) -> PosteriorDraws:
    """Evaluate every task under ``draws`` sampled weights of every posterior.

    Args:
        tasks: T tasks with their ``held_out`` examples.
        held_out: one sample per task.
        means: centre of each posterior.
        sigmas: per posterior, σ per block.
        blocks: the partition σ refers to.
        draws: weights drawn per posterior.
        seed: of the draws.
        posteriors: the indices 0..T-1, possibly wrapped in a progress bar.
    """
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(means) for _ in tasks]
    gradients: list[Tensor] = [torch.empty(0)] * len(means)
    generator = torch.Generator().manual_seed(seed)
    for j in posteriors:
        parts: list[list[Tensor]] = [[] for _ in tasks]
        squares = []
        for d in range(draws):  # one draw of all weights is in memory at a time
            theta = draw_weights(means[j], sigmas[j], blocks, generator)
            for i, (task, sample) in enumerate(zip(tasks, held_out, strict=True)):
                inputs = _share(sample, d, draws).inputs
                parts[i].append(score_task(task, theta, inputs, "test", f"expert {j} with noise"))
            mine = _share(held_out[j], d, draws)
            squares.append(gradient_second_moment(tasks[j].forward, theta, mine, blocks=blocks, vectorize=True))
            del theta
        for i, sample in enumerate(held_out):
            scores[i][j] = _interleave(parts[i], len(sample)).double().cpu()
        gradients[j] = _interleave(squares, len(held_out[j])).double().cpu()
    labels = [sample.labels.cpu() for sample in held_out if sample.labels is not None]
    return PosteriorDraws(scores, gradients, labels)


def _share(sample: Sample, draw: int, draws: int) -> Sample:
    return sample.take(slice(draw, None, draws))


def _interleave(parts: Sequence[Tensor], size: int) -> Tensor:
    whole = parts[0].new_empty(size, parts[0].shape[-1])
    for draw, part in enumerate(parts):
        whole[draw :: len(parts)] = part
    return whole


def along(task: Task, theta: Params, inputs: Inputs, target: Params) -> tuple[Tensor, Tensor]:
    """Scores [N, C] at θ and their derivative [N, C] in the direction θ - target, in one forward-mode pass. Exact."""
    scores, tangents = jvp_scores(task.forward, theta, inputs, [subtract(theta, target)])
    check_scores(scores, check_inputs(inputs), len(task.class_names), described(task.name, "test", "merged"))
    return scores.double().cpu(), tangents[0].double().cpu()
