"""MiniLM: a BERT encoder of token ids in plain PyTorch; the layers are θ, everything before them is frozen.

The function is that of transformers' ``BertModel`` with mean pooling and normalisation, as sentence-transformers runs
all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv 1908.10084; MiniLM: Wang et al., arXiv 2002.10957), to rounding. Position
and type embeddings are one table: an example is one sentence, whose tokens are all of type 0.

Attention is written out (products and a softmax with an additive mask), so every transform of ``torch.func`` goes
through it in every order, without :func:`bounds.autodiff.differentiable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.autodiff import functional
from bounds.types import Forward, Inputs, Params
from merging.models.hf_text import trimmed
from merging.models.modules import move_buffers

PADDING = 0
"""Token id of what is no token."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the network; the defaults are those of MiniLM-L6, the vocabulary's and the texts' lengths apart."""

    words: int
    """Rows of the table of tokens."""
    length: int
    """Positions: tokens of an example at most."""
    width: int = 384
    """Numbers of a token between layers, and of an embedding."""
    layers: int = 6
    """Transformer layers."""
    heads: int = 12
    """Heads of attention; they divide the width."""
    hidden: int = 1536
    """Numbers of a token inside the two-layer perceptron."""
    epsilon: float = 1e-12
    """What layer norms add to the variance."""


class Layer(nn.Module):
    """One transformer layer with the norm after each half."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, shape.epsilon)
        self.widen, self.narrow = nn.Linear(width, shape.hidden), nn.Linear(shape.hidden, width)
        self.norm = nn.LayerNorm(width, shape.epsilon)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return tokens [N, L, D] of tokens [N, L, D]; ``mask`` [N, 1, 1, L] is added to the scores of attention."""
        query, key, value = (
            linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = F.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + mask, dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        tokens = self.attended_norm(tokens + self.attended(attended))
        return self.norm(tokens + self.narrow(F.gelu(self.widen(tokens))))


class Encoder(nn.Module):
    """Token ids [N, L] -> unit embeddings [N, D]; id 0 is padding and is neither attended to nor averaged."""

    words: Tensor
    places: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.epsilon = shape.epsilon
        self.register_buffer("words", torch.zeros(shape.words, shape.width))
        self.register_buffer("places", torch.zeros(shape.length, shape.width))
        self.register_buffer("scale", torch.ones(shape.width))
        self.register_buffer("shift", torch.zeros(shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Embed; computes in the precision of the layers."""
        dtype = next(self.layers.parameters()).dtype
        rows = F.embedding(ids, self.words) + self.places[: ids.shape[-1]]
        tokens = F.layer_norm(
            rows.to(dtype), self.scale.shape, self.scale.to(dtype), self.shift.to(dtype), self.epsilon
        )
        visible = (ids != PADDING).to(dtype)
        mask = ((1 - visible) * torch.finfo(dtype).min)[:, None, None, :]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        total = (tokens * visible[:, :, None]).sum(dim=1)
        return F.normalize(total / visible.sum(dim=1, keepdim=True).clamp(min=1), dim=-1)


def from_bert(weights: Mapping[str, Tensor], rows: Tensor, length: int) -> dict[str, Tensor]:
    """Return an :class:`Encoder`'s state of the weights of a ``BertModel``, by transformers' names.

    Args:
        weights: name -> tensor; a pooler and position ids are left out.
        rows: int64 [W], the tokens that are kept, in their new order.
        length: positions that are kept.
    """
    places = weights["embeddings.position_embeddings.weight"][:length]
    state = {
        "words": weights["embeddings.word_embeddings.weight"][rows],
        "places": places + weights["embeddings.token_type_embeddings.weight"][0],
        "scale": weights["embeddings.LayerNorm.weight"],
        "shift": weights["embeddings.LayerNorm.bias"],
    }
    for name, value in weights.items():
        if name.startswith("encoder.layer."):
            layer, _, rest = name.removeprefix("encoder.layer.").partition(".")
            module, _, kind = rest.rpartition(".")
            state[f"layers.{layer}.{_MODULES[module]}.{kind}"] = value
    return state


_MODULES: Mapping[str, str] = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "attended_norm",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "norm",
}
"""Name of a module of a layer in transformers -> here."""


def shape_of(state: Mapping[str, Tensor], heads: int) -> Shape:
    """Return the sizes of an :class:`Encoder` by its state, which says all but the number of heads."""
    hidden, width = state["layers.0.widen.weight"].shape
    layers = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    words, length = len(state["words"]), len(state["places"])
    return Shape(words=words, length=length, width=width, layers=layers, heads=heads, hidden=hidden)


def build(state: Mapping[str, Tensor], heads: int) -> Encoder:
    """Return the encoder with these weights, in evaluation mode."""
    encoder = Encoder(shape_of(state, heads))
    encoder.load_state_dict(state)
    return encoder.eval()


def classifier(encoder: Encoder, head: Tensor, logit_scale: float) -> tuple[Forward, Params]:
    """Return (forward, θ): scores = logit_scale · embedding · head^T of token ids [N, L]; θ is the encoder's layers.

    Columns that are padding in every example of a batch are not computed, except under ``vmap`` over examples.

    Args:
        encoder: the network.
        head: unit rows [C, D], frozen.
        logit_scale: factor of the scores.
    """

    def apply(module: nn.Module, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        move_buffers(module, inputs.device)
        ids = trimmed({"ids": inputs, "attention_mask": inputs != PADDING})["ids"]
        embedding = module(ids)
        return logit_scale * embedding @ head.T.to(embedding)  # its dtype and its device

    return functional(encoder, apply)
