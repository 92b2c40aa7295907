"""CLIP of transformers: θ is the vision tower; text tower, projections and logit scale are the base's."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bounds.types import Params, refuse
from merging.checkpoints import read_weights
from merging.models.base import Export, Precision, TaskHead
from merging.models.hf_files import processing, read_config, save_pretrained, without_first_weights
from merging.models.libraries import library
from merging.models.modules import Read
from merging.models.tokens import Tokens, read_tokens
from merging.models.writing import save_heads
from merging.models.zero_shot import ZeroShotNetwork

_TOWER, _PROJECTION = "vision_model.", "visual_projection.weight"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is merged, and how scores are computed."""

    projection: Literal["frozen", "merged"] = "frozen"
    """The projection of image embeddings: the base's, or an entry of θ (experts without one have the base's)."""
    dtype: Precision = "float32"
    """What is computed with."""


class ClipNetwork(ZeroShotNetwork):
    """A CLIPModel as base; experts are vision towers (CLIPVisionModel, with or without projection) or whole models."""

    def __init__(self, folder: Path, options: Options) -> None:
        transformers = library("transformers")
        self.config: Any = read_config(folder, "clip")
        self.merged = options.projection == "merged"
        self.lent = frozenset({_PROJECTION} if self.merged else ())
        self.processor, missing = _processor(folder, self.config)
        self.preprocessing = processing(self.processor)
        tokens = read_tokens(folder)
        if tokens is None:
            cure = "copy the tokenizer's files of the base into it"
            refuse(f"base {folder}", expected="a tokenizer, for class names", got="none", cure=cure)
        self.tokens: Tokens = tokens
        with without_first_weights():
            module = transformers.CLIPModel(deepcopy(self.config))
        super().__init__(
            module,
            read_weights(folder),
            f"base {folder}",
            head=(),
            frozen=lambda name: not (name.startswith(_TOWER) or (self.merged and name == _PROJECTION)),
            dtype=options.dtype,
        )
        self.notes += missing

    def read(self, path: Path) -> Read:
        """Read an expert; one whose projection is not the base's is refused while projections are frozen."""
        found = super().read(path)
        own = next((value for name, value in found.weights.items() if name.endswith(_PROJECTION)), None)
        if not self.merged and own is not None and not self.is_base(_PROJECTION, own):
            got, cure = "another one", "set projection: merged"
            refuse(f"expert {path}, {_PROJECTION}", expected="the base's, which is frozen", got=got, cure=cure)
        return found

    def encode_text(self, texts: list[str]) -> Tensor:
        """Return text embeddings [N, D]."""
        tokens = self.tokens.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )  # fmt: skip
        device = self.module.logit_scale.device
        given = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        return self.module.text_projection(self.module.text_model(**given).pooler_output)

    def encode_image(self, module: Any, pixels: Tensor) -> Tensor:
        """Return image embeddings [N, D]."""
        return module.visual_projection(module.vision_model(pixel_values=pixels).pooler_output)

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write a CLIPModel folder: merged vision tower, the base's text tower, tokenizer, preprocessing; heads."""
        with torch.device("meta"):
            model = library("transformers").CLIPModel(deepcopy(self.config))
        save_pretrained(model, folder, self.state_of(params), export)
        self.tokens.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        save_heads(folder, heads, export.dtype)

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written, and scores images."""
        return f"""import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel

model, processor = CLIPModel.from_pretrained("."), CLIPImageProcessor.from_pretrained(".")
head = load_file("heads/{task}.safetensors")["head"].to(model.dtype)  # a unit row per class, made by the text tower
with torch.no_grad():
    pixels = processor(images, return_tensors="pt")["pixel_values"].to(model.dtype)
    embeddings = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    scores = model.logit_scale.exp() * torch.nn.functional.normalize(embeddings, dim=-1) @ head.T"""


def open_base(base: str | Path, options: Options) -> ClipNetwork:
    """Open the folder of a CLIPModel.

    Raises:
        InputError: another folder, or one without a tokenizer.
    """
    return ClipNetwork(Path(base), options)


def _processor(folder: Path, config: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the image processor of a folder, or CLIP's own with a note."""
    kind = library("transformers").CLIPImageProcessor
    if (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file():
        return kind.from_pretrained(str(folder), local_files_only=True), ()
    side = config.vision_config.image_size
    processor = kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return processor, (f"no preprocessor_config.json: images are prepared as CLIP's own, at {side} pixels",)
