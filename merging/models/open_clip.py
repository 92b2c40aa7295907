"""CLIP of open_clip: image tower with weights θ, frozen zero-shot head."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bounds.autodiff import functional, without_jit_warning
from bounds.types import Forward, Inputs, Params, refuse
from merging.checkpoints import hf_clip_to_open_clip, is_hf_clip, read_weights
from merging.models.base import Export, Precision, TaskHead
from merging.models.images import Preprocessing, before_floats, said_plainly
from merging.models.libraries import without_log
from merging.models.modules import Read
from merging.models.writing import converted, save_heads
from merging.models.zero_shot import ZeroShotNetwork, text_head

Tokenizer = Callable[[list[str]], Tensor]
_TOWER, _PROJECTION = "visual.", "visual.proj"
_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which architecture, and how scores are computed."""

    architecture: str = ""
    """Name of open_clip's, e.g. ViT-B-32-quickgelu; not needed for a folder with open_clip_config.json."""
    pretrained: str = ""
    """Tag of the base's weights in open_clip, e.g. openai: its preprocessing is used and its activation checked."""
    dtype: Precision = "float32"
    """What is computed with."""


def import_open_clip() -> Any:
    """Import open_clip without the warning that a dependency of it (timm) raises while being imported."""
    with without_jit_warning():
        import open_clip
    return open_clip


def build_clip(config: dict[str, Any]) -> nn.Module:
    """Build an open_clip CLIP from ``{"embed_dim", "vision_cfg", "text_cfg"}``, in evaluation mode."""
    return import_open_clip().CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()


def preprocess(images: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Turn uint8 pixels [N, H, W] (grey) or [N, H, W, 3] into [N, 3, size, size] in [-1, 1], padded with black."""
    if images.ndim == 3:
        images = images.unsqueeze(-1).expand(*images.shape, 3)
    pixels = images.movedim(-1, 1).to(dtype) / 127.5 - 1
    border = (size - images.shape[1]) // 2
    return F.pad(pixels, (border, border, border, border), value=-1.0) if border else pixels


def zero_shot_head(clip: Any, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Classifier [C, D] of unit rows without the logit scale (see :func:`classifier`), by the model's text tower."""
    return text_head(lambda texts: clip.encode_text(tokenizer(texts)), class_names, templates)


def classifier(visual: nn.Module, head: Tensor, logit_scale: float, image_size: int) -> tuple[Forward, Params]:
    """Return (forward, θ): scores = logit_scale · normalise(visual(x)) · head^T for uint8 pixels x. Exact.

    Args:
        visual: open_clip image tower; its parameters are θ.
        head: unit rows [C, D], frozen.
        logit_scale: the factor itself (exp of CLIP's parameter), kept apart from the head so that it is applied once.
        image_size: side of the tower's input in pixels.
    """
    if head.ndim != 2 or not bool(((head.norm(dim=1) - 1).abs() < 1e-3).all()):
        refuse(
            "zero-shot head",
            expected="unit rows [C, D] without the logit scale",
            got=f"norms {head.norm(dim=-1)}",
            cure="divide the scale out",
        )

    def apply(module: nn.Module, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        dtype = next(module.parameters()).dtype
        embedding = F.normalize(module(preprocess(inputs, image_size, dtype)), dim=-1)
        return logit_scale * embedding @ head.T.to(embedding)  # its dtype and its device

    return functional(visual, apply)


class OpenClipNetwork(ZeroShotNetwork):
    """A CLIP of open_clip as base; experts are whole models, image towers, or towers of transformers' CLIP."""

    lent = frozenset({_PROJECTION})

    def __init__(self, base: Path, options: Options) -> None:
        open_clip = import_open_clip()
        self.model_config, shown = _configs(base, options)
        name = f"local-dir:{base}" if base.is_dir() and not options.architecture else options.architecture
        said = {"load_weights": False, "pretrained_text": False, "force_preprocess_cfg": shown}
        with without_jit_warning(), without_log("No pretrained weights loaded"):  # they are, below
            module = open_clip.create_model(name, **said)
            self.tokenizer = open_clip.get_tokenizer(name)
        self.quick_gelu = any(type(part).__name__ == "QuickGELU" for part in module.visual.modules())
        super().__init__(
            module,
            read_weights(base),
            f"base {base}",
            head=(),
            frozen=lambda name: not name.startswith(_TOWER),
            dtype=options.dtype,
        )
        self.preprocessing = _preprocessing(open_clip.get_model_preprocess_cfg(module))

    def read(self, path: Path) -> Read:
        """Read an expert; a tower of transformers gets open_clip's names."""
        _check_activation(path, self.quick_gelu)
        found = super().read(path)
        if not is_hf_clip(found.weights):
            return found
        note = "image tower of transformers, renamed to open_clip's"
        return Read(hf_clip_to_open_clip(found.weights), (*found.notes, note))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Return text embeddings [N, D]."""
        return self.module.encode_text(self.tokenizer(texts).to(self.module.logit_scale.device))

    def encode_image(self, module: Any, pixels: Tensor) -> Tensor:
        """Return image embeddings [N, D]."""
        return module.encode_image(pixels)

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write a folder that ``open_clip.create_model("local-dir:FOLDER")`` loads, and the heads."""
        save_file(converted(self.state_of(params), export.dtype), folder / _WEIGHTS, {"format": "pt"})
        names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        shown = {n: v for n, v in import_open_clip().get_model_preprocess_cfg(self.module).items() if n in names}
        content = {"model_cfg": self.model_config, "preprocess_cfg": shown}
        (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_heads(folder, heads, export.dtype)

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written, and scores images."""
        return f"""import open_clip
import torch
from safetensors.torch import load_file

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
head = load_file("heads/{task}.safetensors")["head"].float()  # a unit row per class, made by the text tower
with torch.no_grad():
    embeddings = model.eval().encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
    scores = model.logit_scale.exp() * embeddings @ head.T"""


def open_base(base: str | Path, options: Options) -> OpenClipNetwork:
    """Open a base: a folder with open_clip_config.json and weights, or weights of the architecture that is named.

    Raises:
        InputError: an unknown architecture, one whose activation is not that of the weights, or other files.
    """
    return OpenClipNetwork(Path(base), options)


def _configs(base: Path, options: Options) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the configuration of the model, and of the preprocessing where the tag of the weights has one.

    Raises:
        InputError: see :func:`open_base`.
    """
    open_clip = import_open_clip()
    if not options.architecture:
        try:
            return json.loads((base / _CONFIG).read_text(encoding="utf-8"))["model_cfg"], None
        except (OSError, ValueError, KeyError, TypeError) as error:
            cure = "set architecture, e.g. ViT-B-32-quickgelu, or name a folder with that file"
            refuse(f"base {base}", expected=f"a folder with {_CONFIG}", got=error, cure=cure)
    config = open_clip.get_model_config(options.architecture)
    if config is None:
        cure = "choose one of open_clip.list_models()"
        refuse("architecture", expected="one of open_clip's", got=repr(options.architecture), cure=cure)
    tag = options.pretrained or ("openai" if "openai" in base.name.lower() else "")
    shown = open_clip.get_pretrained_cfg(options.architecture, tag) if tag else None
    if tag and not shown:
        cure = f"choose one of {', '.join(open_clip.list_pretrained_tags_by_model(options.architecture))}"
        refuse("pretrained", expected=f"a tag of {options.architecture}", got=repr(tag), cure=cure)
    quick = bool(config.get("quick_gelu", False))
    if shown and bool(shown.get("quick_gelu", False)) != quick:
        _refuse_activation(f"architecture {options.architecture}", not quick, f"weights {tag!r} have")
    names = ("mean", "std", "interpolation", "resize_mode")
    return deepcopy(config), {name: shown[name] for name in names if name in shown} if shown else None


def _check_activation(path: Path, quick: bool) -> None:
    """Refuse a tower of transformers whose activation is not the base's: scores would be silently wrong."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        activation = config.get("vision_config", config).get("hidden_act")
    except (OSError, ValueError, AttributeError):
        return  # no folder of transformers
    if activation is not None and (activation == "quick_gelu") != quick:
        _refuse_activation(f"base for {path}", activation == "quick_gelu", "the expert has")


def _refuse_activation(what: str, quick: bool, who: str) -> None:
    want, other = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    cure = "use the architecture NAME-quickgelu" if quick else "use the architecture without -quickgelu"
    refuse(what, expected=f"{want}, which {who}", got=other, cure=cure)


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Return what open_clip's transform of a configuration does."""
    transforms = import_open_clip().transform
    settings = transforms.PreprocessCfg(**config)
    size = settings.size if isinstance(settings.size, (tuple, list)) else (settings.size, settings.size)
    return Preprocessing(
        size=(int(size[0]), int(size[1])),
        shape=before_floats(transforms.image_transform_v2(settings, is_train=False)),
        mean=settings.mean,
        std=settings.std,
        rules=said_plainly(**config),
    )
