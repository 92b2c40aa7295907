"""Classifiers of image-text models: image tower with weights θ, and a head that the text tower makes of class names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.types import Inputs, refuse
from merging.models.base import Expert, TaskHead, fitting
from merging.models.images import Preprocessing
from merging.models.modules import ModuleNetwork

TEMPLATES = ("a photo of a {}.",)
"""The prompt where none is given."""


@torch.no_grad()
def text_head(encode: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Classifier [C, D] of unit rows: per class, the normalised mean over prompts of normalised text embeddings.

    The logit scale is not in it. Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
    """
    rows = []
    for name in class_names:
        embeddings = encode([template.format(name) for template in templates])
        rows.append(F.normalize(F.normalize(embeddings, dim=-1).mean(dim=0), dim=0))
    return torch.stack(rows)


class ZeroShotNetwork(ModuleNetwork):
    """Scores = scale · normalise(image(x)) · headᵀ. The text tower and the scale are the base's, in every head."""

    preprocessing: Preprocessing

    def head(self, expert: Expert | None, class_names: Sequence[str], templates: Sequence[str] = ()) -> TaskHead:
        """Make a head of class names and prompts (one prompt, "a photo of a {}.", where none is given).

        Raises:
            InputError: no class names, or a prompt without a place for the class.
        """
        prompts = list(templates or TEMPLATES)
        wrong = next((prompt for prompt in prompts if prompt.count("{}") < 1), None)
        if wrong is not None:
            refuse("template", expected="a prompt with {} for the class", got=repr(wrong), cure="put {} into it")
        names = fitting(class_names, None, None)
        if not names:
            refuse(
                "class names", expected="one per class", got="none", cure="name the classes: the head is made of them"
            )
        rows = text_head(self.encode_text, names, prompts)
        return TaskHead({"head": rows, **self.bias()}, names, self.scale())

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return scale · cosine, as the library's logits per image (with its bias, where it has one)."""
        assert isinstance(inputs, Tensor)
        image = self.encode_image(module, self.preprocessing.normalised(inputs, self.dtype))
        return head.scale * F.normalize(image, dim=-1) @ head.weights["head"].T + head.weights.get("bias", 0.0)

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        """Resize and crop images by the model's own rules: uint8 [N, 3, H, W], normalised inside the network."""
        return self.preprocessing.pixels(examples)

    @property
    def preparation(self) -> str:
        """Size and rules of the preprocessing."""
        return self.preprocessing.key

    def scale(self) -> float:
        """Return the factor of the scores: exp of the model's parameter."""
        return float(self.module.logit_scale.detach().double().exp())

    def bias(self) -> Mapping[str, Tensor]:
        """Return what the model adds to all scores, if it does."""
        bias = getattr(self.module, "logit_bias", None)
        return {} if bias is None else {"bias": bias.detach().clone()}

    @abstractmethod
    def encode_text(self, texts: list[str]) -> Tensor:
        """Return embeddings [N, D] of texts, not normalised."""

    @abstractmethod
    def encode_image(self, module: Any, pixels: Tensor) -> Tensor:
        """Return embeddings [N, D] of normalised pixels, not normalised."""
