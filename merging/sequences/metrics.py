"""Figures of language models: perplexity, bits per byte, and what they write themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.types import Forward, Params, refuse
from merging.measured import Measured


def perplexity(loss: float) -> float:
    """Return exp of a mean cross-entropy of a token in nats; inf where that is more than a float holds. Exact."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(measured: Measured) -> float | None:
    """Return the cross-entropy of all counted tokens in bits over the bytes of their text; None: bytes not known.

    It does not depend on how a tokenizer cuts text, as perplexity does. Exact.
    """
    if measured.text_bytes is None:
        return None
    return float(measured.cross_entropy.sum()) / math.log(2) / float(measured.text_bytes.sum())


@torch.no_grad()
def generate(
    forward: Forward, params: Params, prompts: Sequence[Tensor], new_tokens: int, stop: int | None = None
) -> list[Tensor]:
    """Return what a causal language model writes after each prompt, always the likeliest token.

    Prompts of one length are run together, and the whole text is run again for every token (no cache of keys and
    values): for small models and short texts. Of equal scores the smallest token is taken.

    Args:
        forward: (θ, token ids [N, L]) -> scores [N, L, V] of the next tokens.
        params: θ.
        prompts: token ids [L_i] each, L_i >= 1.
        new_tokens: most tokens that are written.
        stop: the token that ends a text; it is not part of what is returned.

    Returns:
        For each prompt the tokens after it [at most new_tokens], int64.

    Raises:
        InputError: a prompt that is no row of token ids, or none; new_tokens < 1.
    """
    if new_tokens < 1:
        refuse("new tokens", expected="at least 1", got=new_tokens, cure="raise it")
    for place, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not len(prompt) or prompt.is_floating_point():
            got = f"{prompt.dtype} {list(prompt.shape)}"
            refuse(f"prompt {place}", expected="token ids [L], L >= 1", got=got, cure="encode the text")
    written: dict[int, Tensor] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        whole = _continued(forward, params, torch.stack([prompts[place] for place in places]), new_tokens, stop)
        for place, row in zip(places, whole[:, length:], strict=True):
            ends = [] if stop is None else (row == stop).nonzero().flatten().tolist()
            written[place] = row[: ends[0]] if ends else row
    return [written[place] for place in range(len(prompts))]


def _continued(forward: Forward, params: Params, tokens: Tensor, new_tokens: int, stop: int | None) -> Tensor:
    """Token ids [N, L] with at most ``new_tokens`` more, until every row has the stop after its prompt."""
    tokens, length = tokens.long(), tokens.shape[1]
    for _ in range(new_tokens):
        tokens = torch.cat([tokens, forward(params, tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        if stop is not None and bool((tokens[:, length:] == stop).any(dim=1).all()):
            break
    return tokens


def exact_match(written: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
    """Return which of N texts are their answers token for token [N], 0 or 1 in float64: their mean is exact match.

    Raises:
        InputError: other numbers of texts and answers, or none.
    """
    if len(written) != len(answers) or not answers:
        cure = "give one answer per prompt"
        refuse("answers", expected=f"{len(written)} of them, at least 1", got=len(answers), cure=cure)
    pairs = zip(written, answers, strict=True)
    return torch.tensor([torch.equal(own.long(), answer.long()) for own, answer in pairs], dtype=torch.float64)
