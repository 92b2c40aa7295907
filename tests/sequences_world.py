"""A suite whose network scores every position: a tiny causal transformer, two tasks, experts trained for a moment.

Task ``first`` counts up, task ``second`` counts down, both modulo V, with some tokens drawn at random. Examples are of
different lengths, padded on the right, with ``attention_mask``; ``packed`` has examples of one length and plain tensors
of token ids. Tests and other suites may use it: ``world()`` for the suite, ``suite`` for commands
(``tests.sequences_world:suite``).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.autodiff import functional
from bounds.types import Forward, Params, Sample
from merging.sequences import IGNORED, Numbered, SequenceTask
from merging.suites import Suite
from merging.task_vectors import TaskVectors

VOCABULARY, LENGTH, WIDTH = 11, 8, 12
SIZES = {"train": 32, "calibration": 24, "validation": 10, "test": 12}
STEPS = {"first": 1, "second": -1}
"""Task -> what is added to a token to give the next."""


class Layer(nn.Module):
    """Attention to what came before, and a hidden layer, each added to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = self.attention(self.ln_1(x)).chunk(3, dim=-1)
        scores = (q @ k.mT / math.sqrt(WIDTH)).masked_fill(~allowed, -1e9)
        x = x + self.out(scores.softmax(dim=-1) @ v)
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class TinyLanguageModel(nn.Module):
    """Scores [N, L, V] of the next tokens; the head is the embedding's transpose, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.3)
        self.layers, self.last = nn.ModuleList([Layer(), Layer()]), nn.LayerNorm(WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        if attention_mask is not None:
            allowed = allowed & (attention_mask[:, None] != 0)
        x = self.tokens(input_ids) + self.places.weight[:length]
        for layer in self.layers:
            x = layer(x, allowed)
        return F.linear(self.last(x), self.tokens.weight)


def network(dtype: torch.dtype = torch.float64) -> tuple[Forward, Params]:
    """The model as a pure function, with its first weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return functional(TinyLanguageModel().to(dtype), per_position=True)


def text(step: int, count: int, generator: torch.Generator, *, padded: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Token ids, mask and next tokens of ``count`` examples, no two of which are equal."""
    first = torch.randint(VOCABULARY, (2 * count, 1), generator=generator)
    tokens = (first + step * torch.arange(LENGTH + 1)) % VOCABULARY
    other = torch.randint(VOCABULARY, tokens.shape, generator=generator)
    tokens = torch.where(torch.rand(tokens.shape, generator=generator) < 0.2, other, tokens)
    lengths = torch.randint(4, LENGTH + 1, (len(tokens), 1), generator=generator)
    kept = torch.arange(LENGTH) < (lengths if padded else LENGTH)
    ids = tokens[:, :-1] * kept
    distinct = list({tuple(row): place for place, row in enumerate(ids.tolist())}.values())[:count]
    assert len(distinct) == count
    labels = tokens[:, 1:].where(kept, IGNORED)
    return {"input_ids": ids[distinct], "attention_mask": kept.expand_as(ids)[distinct].long()}, labels[distinct]


def build(*, padded: bool = True, dtype: torch.dtype = torch.float64, steps: int = 40) -> Suite:
    """Make the suite; experts are trained by ``steps`` of Adam on their training split, from one start."""
    generator, (forward, base) = torch.Generator().manual_seed(0), network(dtype)
    tasks, experts = [], {}
    for name, step in STEPS.items():
        inputs, labels = text(step, sum(SIZES.values()), generator, padded=padded)
        whole, splits = Sample(inputs if padded else inputs["input_ids"], labels), {}
        for split, place in zip(SIZES, torch.arange(len(labels)).split(list(SIZES.values())), strict=True):
            splits[split] = whole.take(place) if split != "calibration" else Sample(whole.take(place).inputs)
        tasks.append(SequenceTask(name, forward, Numbered(VOCABULARY), **splits))
        experts[name] = trained(forward, base, splits["train"], steps)
    sources = {"sequences": "seed 0"}
    return Suite(
        "sequences",
        TaskVectors.from_experts(base, experts, sources=sources),
        tasks,
        sources=sources,
    )


def trained(forward: Forward, base: Params, train: Sample, steps: int) -> dict[str, Tensor]:
    """Return θ after some steps on the mean cross-entropy of a counted token."""
    theta = {name: value.clone().requires_grad_() for name, value in base.items()}
    optimizer = torch.optim.Adam(theta.values(), lr=0.01)
    assert train.labels is not None
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(forward(theta, train.inputs).flatten(0, 1), train.labels.flatten()).backward()
        optimizer.step()
    return {name: value.detach() for name, value in theta.items()}


@lru_cache
def world(padded: bool = True, dtype: torch.dtype = torch.float64) -> Suite:
    """The suite, made once."""
    return build(padded=padded, dtype=dtype)


def suite() -> Suite:
    """The suite as a command loads it, by name."""
    return world()
