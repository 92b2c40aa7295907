"""Networks that score every position of an example (docs/theory.md section 19): what is independent, and what adds up.

The example is independent of the others, its positions are not independent of each other. Whatever is certified or has
a standard error is therefore one number per example: the mean over the positions that count. The KL divergence of two
language models, as distributions of whole texts, is another thing than its mean over the positions of given texts:
:func:`text_divergence` measures it on texts that the teacher writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from bounds.distillation import divergences
from bounds.scores import check_scores, probabilities
from bounds.types import Estimate, refuse
from bounds.validation import check_count, check_finite

Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""Token ids [N, L] -> scores [N, L, V] of the tokens that follow."""


def _checked(sums: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    totals, counts = check_finite(sums, "sums"), check_finite(positions, "positions")
    if totals.ndim != 1 or totals.shape != counts.shape or float(counts.min()) < 1:
        got = f"{list(totals.shape)} and {list(counts.shape)}, the fewest {float(counts.min()):g}"
        cure = "leave out examples in which nothing counts"
        refuse("sums and positions", expected="[N] each, one position or more", got=got, cure=cure)
    return totals.double(), counts.double()


def example_means(sums: Tensor, positions: Tensor) -> Tensor:
    """Return X_i [N], the mean over the counted positions of every example.

    Args:
        sums: [N], of a quantity over the counted positions of each example.
        positions: [N], how many count, at least one.

    Raises:
        InputError: other shapes, values that are not finite, an example without a position that counts.

    Source: docs/theory.md (22). Status: exact.
    """
    totals, counts = _checked(sums, positions)
    return totals / counts


def mean_of_positions(sums: Tensor, positions: Tensor) -> Estimate:
    """Return the mean over all counted positions of all examples, as corpora are measured, with its standard error.

    It weighs an example by its length, where the mean over examples of :func:`example_means` weighs all alike; they are
    equal where lengths are. The error is that of a ratio of two means over independent examples, linearised (delta
    method): positions of one example are not taken for independent.

    Args:
        sums: [N], of a quantity over the counted positions of each example.
        positions: [N], how many count, at least one.

    Returns:
        Estimate; n is the number of examples. inf is the error of a single one.

    Raises:
        InputError: as :func:`example_means`.

    Source: docs/theory.md (22). Status: estimated.
    """
    totals, counts = _checked(sums, positions)
    value = float(totals.sum() / counts.sum())
    linear = Estimate.of_mean((totals - value * counts) / counts.mean())
    return Estimate(value, linear.stderr, len(totals), "estimated")


@dataclass(frozen=True)
class TextDivergence:
    """Sums over the positions of N texts that a teacher wrote, [N] each: of KL(p || q), nats, and of TV(p, q).

    The mean of ``divergence`` over texts is KL of the two distributions of whole texts, without bias (24); that of
    ``variation`` is no smaller than their total variation (24).
    """

    divergence: Tensor
    variation: Tensor

    @property
    def kl(self) -> Estimate:
        """KL(teacher ‖ student) of whole texts, in nats; estimated."""
        return Estimate.of_mean(self.divergence)

    @property
    def most(self) -> float:
        """An upper bound on their total variation: the least of Σ TV, Pinsker's and Bretagnolle-Huber's; estimated."""
        k = self.kl.value
        return min(float(self.variation.mean()), math.sqrt(k / 2.0), math.sqrt(-math.expm1(-k)))


@torch.no_grad()
def text_divergence(teacher: Scorer, student: Scorer, prompts: Tensor, new_tokens: int, seed: int) -> TextDivergence:
    """Compare two language models as distributions of whole texts, on texts that the teacher writes at temperature 1.

    At each position the divergences of the next token are computed over all V tokens and not from the one that was
    drawn, so that only the prefixes are random. The whole text is run again for every token.

    Args:
        teacher: p, which writes.
        student: q.
        prompts: [N, L], L >= 1, int64: texts after which it writes; repeat one to draw several texts.
        new_tokens: how many tokens it writes after each.
        seed: of the draws.

    Raises:
        InputError: prompts that are no token ids, new_tokens < 1, scores that are not finite or of another shape.

    Source: docs/theory.md (24). Status: exact given the texts; means over texts are estimated.
    """
    if prompts.ndim != 2 or prompts.is_floating_point() or not prompts.numel():
        got = f"{prompts.dtype} {list(prompts.shape)}"
        refuse("prompts", expected="token ids [N, L], N and L >= 1", got=got, cure="encode the texts, of one length")
    check_count(new_tokens, "new tokens")
    generator, text = torch.Generator().manual_seed(seed), prompts.long()
    kl = torch.zeros(len(text), dtype=torch.float64)
    tv = torch.zeros_like(kl)
    for _ in range(new_tokens):
        p, q = (
            check_scores(model(text), len(text), None, what, text.shape[1])[:, -1].double().cpu()
            for model, what in ((teacher, "teacher scores"), (student, "student scores"))
        )
        here = divergences(p, q)
        kl, tv = kl + here.divergence, tv + here.variation
        drawn = torch.multinomial(probabilities(p), 1, generator=generator)
        text = torch.cat([text, drawn.to(text.device)], dim=1)
    return TextDivergence(kl, tv)
