"""Dense, slow, obvious: what the fast paths are compared with, and the tiny networks they are compared on."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bounds.autodiff import functional
from bounds.types import Forward, Inputs, Params, take

CLASSES = 4


def flatten(params: Params) -> Tensor:
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector: Tensor, like: Params) -> dict[str, Tensor]:
    pieces = vector.split([value.numel() for value in like.values()])
    return {name: piece.view(value.shape) for piece, (name, value) in zip(pieces, like.items(), strict=True)}


def numbers_of(names: Sequence[str], params: Params) -> Tensor:
    """Positions of the named parameters in the flat vector (a mask)."""
    return torch.cat([torch.full((value.numel(),), name in names) for name, value in params.items()])


def plain_attention(function: Callable[[], Tensor]) -> Tensor:
    """Evaluate without the fused kernels, independently of the code under test."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return function()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def jacobian(forward: Forward, params: Params, inputs: Inputs) -> Tensor:
    """J(x_i) for every example, [N, C, P]: one ordinary backward pass for every number, no torch.func."""
    rows = []
    n = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    for i in range(n):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        scores = plain_attention(lambda i=i, leaves=leaves: forward(leaves, take(inputs, slice(i, i + 1))))[0]
        for score in scores:
            gradients = torch.autograd.grad(score, list(leaves.values()), retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows).view(n, -1, len(rows[0]))


def centring(classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64) - 1.0 / classes


def kernel_blocks(jacobians: Tensor, masks: Sequence[Tensor], centred: bool) -> Tensor:
    """K_b(x, x) [N, B, C, C] from full Jacobians [N, C, P]."""
    project = centring(jacobians.shape[1]) if centred else torch.eye(jacobians.shape[1], dtype=torch.float64)
    blocks = [jacobians[:, :, mask] @ jacobians[:, :, mask].mT for mask in masks]
    return project @ torch.stack(blocks, dim=1) @ project


def gram(jacobians1: Tensor, jacobians2: Tensor, centred: bool) -> Tensor:
    """K(x_i, x_j) [N1, C, N2, C]."""
    if centred:
        project = centring(jacobians1.shape[1])
        jacobians1, jacobians2 = project @ jacobians1, project @ jacobians2
    return torch.einsum("icp,jdp->icjd", jacobians1, jacobians2)


def hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Hessian [P, P] of a scalar function, by differentiating its gradient number by number."""
    at = at.detach().clone().requires_grad_()
    value = plain_attention(lambda: function(at))
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    return torch.stack([torch.autograd.grad(g, at, retain_graph=True, materialize_grads=True)[0] for g in gradient])


def mlp(dtype: torch.dtype = torch.float64, n: int = 7) -> tuple[Forward, dict[str, Tensor], Tensor]:
    """A 2-layer perceptron, 5 -> 6 -> 4, and n inputs."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).to(dtype)
    forward, params = functional(module)
    return forward, dict(params), torch.randn(n, 5, dtype=dtype)


def vit(dtype: torch.dtype = torch.float64, n: int = 3) -> tuple[Forward, dict[str, Tensor], Tensor]:
    """A tiny open_clip vision tower with a frozen cosine head, and n images."""
    torch.manual_seed(2)
    tower = VisionTransformer(image_size=8, patch_size=4, width=8, layers=2, heads=2, mlp_ratio=2.0, output_dim=6).to(
        dtype
    )
    head = nn.functional.normalize(torch.randn(CLASSES, 6, dtype=dtype), dim=-1)

    def apply(module: nn.Module, images: Inputs) -> Tensor:
        return 10.0 * nn.functional.normalize(module(images), dim=-1) @ head.T

    forward, params = functional(tower, apply)
    return forward, dict(params), torch.randn(n, 3, 8, 8, dtype=dtype)


def text_tower(dtype: torch.dtype = torch.float64, n: int = 3) -> tuple[Forward, dict[str, Tensor], Tensor]:
    """A tiny open_clip text tower (causal attention, integer inputs), and n token sequences."""
    torch.manual_seed(3)
    tower = TextTransformer(context_length=5, vocab_size=11, width=8, heads=2, layers=1, output_dim=CLASSES).to(dtype)
    forward, params = functional(tower)
    return forward, dict(params), torch.randint(1, 11, (n, 5))


MODELS = {"mlp": mlp, "vit": vit, "text": text_tower}


def _transformers() -> Any:
    return pytest.importorskip("transformers")


def bert(dtype: torch.dtype = torch.float64, n: int = 3) -> tuple[Forward, dict[str, Tensor], Inputs]:
    """A tiny random BERT classifier (needs transformers), and n padded sequences as a mapping."""
    transformers = _transformers()
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
        num_labels=CLASSES,
    )
    config._attn_implementation = "eager"
    return _hugging_face(transformers.BertForSequenceClassification(config).to(dtype), n)


def gpt2(dtype: torch.dtype = torch.float64, n: int = 3) -> tuple[Forward, dict[str, Tensor], Inputs]:
    """A tiny random GPT-2 classifier (needs transformers), and n padded sequences as a mapping."""
    transformers = _transformers()
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2, num_labels=CLASSES, pad_token_id=0
    )
    config._attn_implementation = "eager"
    return _hugging_face(transformers.GPT2ForSequenceClassification(config).to(dtype), n)


def _hugging_face(module: Any, n: int) -> tuple[Forward, dict[str, Tensor], Inputs]:
    forward, params = functional(module, _logits)
    lengths = torch.arange(n) % 3 + 3
    mask = (torch.arange(5) < lengths[:, None]).long()
    return forward, dict(params), {"input_ids": torch.randint(1, 13, (n, 5)) * mask, "attention_mask": mask}


def _logits(module: nn.Module, inputs: Any) -> Tensor:
    return module(**inputs).logits


HUGGING_FACE = {"bert": bert, "gpt2": gpt2}


def halves(params: Params) -> dict[str, list[str]]:
    """Two unequal blocks whose members are not consecutive."""
    names = list(params)
    return {"rest": names[1::3] + names[2::3], "every third": names[::3]}


def displacement(params: Params, seed: int = 5, scale: float = 0.1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        for name, value in params.items()
    }
