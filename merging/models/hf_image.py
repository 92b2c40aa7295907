"""Image classifiers of transformers (ViT, ConvNeXT, ResNet, ...): θ is all but the layers of the classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bounds.types import Inputs, Params, refuse
from merging.checkpoints import is_adapter
from merging.models.base import Expert, Export, Precision, TaskHead
from merging.models.hf_files import class_names, config_for, loaded, processing, read_config, save_pretrained
from merging.models.libraries import library
from merging.models.modules import ModuleNetwork, Read
from merging.models.writing import inside, save_heads


@dataclass(frozen=True, kw_only=True)
class Options:
    """How scores are computed."""

    dtype: Precision = "float32"
    """What is computed with."""


class ImageNetwork(ModuleNetwork):
    """An image classifier of transformers; its base is a bare model, or one with a head."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.config: Any = read_config(folder)
        try:
            module = library("transformers").AutoModelForImageClassification.from_config(deepcopy(self.config))
            self.processor: Any = library("transformers").AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True
            )
        except (OSError, ValueError) as error:
            got, cure = " ".join(str(error).split())[:120], "name the base's folder, with its preprocessor_config.json"
            refuse(f"base {folder}", expected="an image classifier with its preprocessing", got=got, cure=cure)
        start = f"{module.base_model_prefix}."
        heads = [name for name in module.state_dict() if not name.startswith(start)]
        weights = loaded(library("transformers").AutoModelForImageClassification, folder).weights
        super().__init__(module, weights, f"base {folder}", head=heads, dtype=options.dtype)
        self.preprocessing = processing(self.processor)
        self.base_classes = class_names(self.config)

    def expert(self, path: Path) -> Expert:
        """Read an expert's folder (as save_pretrained writes it), adapter or file."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        found, names = super().expert(path), self.base_classes
        if (folder / "config.json").is_file():
            names = class_names(read_config(folder, self.config.model_type))
        return replace(found, class_names=names if names and len(names) == self.classes(found.head) else None)

    def read(self, path: Path) -> Read:
        """Read an expert; a folder of transformers by the library, which renames what older releases wrote."""
        if is_adapter(path) or not (path / "config.json").is_file():
            return super().read(path)
        read_config(path, self.config.model_type)
        return loaded(library("transformers").AutoModelForImageClassification, path)

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return the logits of the library's class."""
        assert isinstance(inputs, Tensor)
        given = {"pixel_values": self.preprocessing.normalised(inputs, self.dtype)}
        return torch.func.functional_call(module, dict(head.weights), (), given, tie_weights=False).logits

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        """Resize and crop images: uint8 [N, 3, H, W], normalised inside the network."""
        return self.preprocessing.pixels(examples)

    @property
    def preparation(self) -> str:
        """Size and rules of the preprocessing."""
        return self.preprocessing.key

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write folders of save_pretrained, with the preprocessing; see :meth:`write`."""
        for task, head in heads.items() if export.per_task else ():
            model = self._on_meta(config_for(self.config, head))
            save_pretrained(model, inside(folder, task), self.state_of(params, head), export)
            self.processor.save_pretrained(folder / task)
        if not export.per_task:
            start = f"{self.module.base_model_prefix}."
            state = {n.removeprefix(start): v for n, v in self.state_of(params).items() if n.startswith(start)}
            save_pretrained(getattr(self._on_meta(self.config), start[:-1]), folder, state, export)
            self.processor.save_pretrained(folder)
            save_heads(folder, heads, export.dtype)

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written, and scores images."""
        place, count, head = task, "", ""
        if not per_task:
            place, count = ".", f', num_labels=len(head["{self.own[-1]}"])'
            head = f'from safetensors.torch import load_file\n\nhead = load_file("heads/{task}.safetensors")\n'
        return (
            f"from transformers import AutoImageProcessor, AutoModelForImageClassification\n{head}\n"
            f'model = AutoModelForImageClassification.from_pretrained("{place}"{count})\n'
            f"{'' if per_task else 'model.load_state_dict(head, strict=False)'}\n"
            f'processor = AutoImageProcessor.from_pretrained("{place}")\n'
            'scores = model.eval()(**processor(images, return_tensors="pt")).logits'
        )

    def _on_meta(self, config: Any) -> Any:
        with torch.device("meta"):
            return library("transformers").AutoModelForImageClassification.from_config(deepcopy(config))


def open_base(base: str | Path, options: Options) -> ImageNetwork:
    """Open the folder of a base model.

    Raises:
        InputError: no folder that transformers wrote, a model without an image classifier, or without preprocessing.
    """
    return ImageNetwork(Path(base), options)
