"""Image classifiers of torchvision and timm by the name of their architecture: θ is all but the last layer.

Running statistics of batch normalisation are entries of θ. Every expert has its own last layer, of its own classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from bounds.types import Inputs, Params, refuse
from merging.checkpoints import read_weights
from merging.models.base import Expert, Export, Precision, TaskHead
from merging.models.images import Preprocessing, before_floats, said_plainly
from merging.models.libraries import library
from merging.models.modules import ModuleNetwork, save_states

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which architecture, and what images go through.

    What is left at 0 or empty is the architecture's own with timm, and ImageNet's with torchvision: the shorter side to
    8/7 of the size by bilinear interpolation, the centre of 224 x 224, and ImageNet's mean and deviation.
    """

    architecture: str = ""
    """``torchvision:NAME`` or ``timm:NAME``; not needed for a folder of timm (config.json with the architecture)."""
    head: str = ""
    """Name of the last layer's module, where it is not found by itself."""
    size: int = 0
    """Side of the images that the network takes."""
    resize: int = 0
    """What the shorter side is made before the centre is cut out."""
    interpolation: Literal["", "bilinear", "bicubic", "nearest"] = ""
    """How images are resized."""
    mean: tuple[float, ...] = ()
    """Of the channels, of pixels in [0, 1]."""
    std: tuple[float, ...] = ()
    """Of the channels."""
    dtype: Precision = "float32"
    """What is computed with."""


class VisionNetwork(ModuleNetwork):
    """An image classifier as base; experts are state dicts of the same architecture, with any number of classes."""

    def __init__(self, base: Path, options: Options) -> None:
        self.options = options
        self.library, self.name = _architecture(base, options.architecture)
        module = _build(self.library, self.name)
        heads = [options.head] if options.head else _heads(module, self.library)
        names = [name for name in module.state_dict() if name.startswith(tuple(f"{head}." for head in heads))]
        if not names:
            shown = [name for name, _ in module.named_modules()][-3:]
            refuse("head", expected="the name of a module", got=repr(options.head), cure=f"such as one of {shown}")
        super().__init__(module, read_weights(base), f"base {base}", head=names, dtype=options.dtype)
        self.preprocessing = _preprocessing(self.library, module, options)
        self.base_classes = _labels(base)

    def expert(self, path: Path) -> Expert:
        """Read an expert's file, or folder of timm."""
        found, names = super().expert(path), _labels(Path(path))
        return replace(found, class_names=names if names and len(names) == self.classes(found.head) else None)

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return the scores of normalised images."""
        assert isinstance(inputs, Tensor)
        return super().scores(module, head, self.preprocessing.normalised(inputs, self.dtype))

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        """Resize and crop images: uint8 [N, 3, H, W], normalised inside the network."""
        return self.preprocessing.pixels(examples)

    @property
    def preparation(self) -> str:
        """Size and rules of the preprocessing."""
        return self.preprocessing.key

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write state dicts as safetensors; for timm with its config.json, which ``local-dir:FOLDER`` loads."""
        save_states(self, params, folder, heads, export)
        for task, head in heads.items() if export.per_task and self.library == "timm" else ():
            content = json.dumps(self._timm_config(head.class_names), indent=2)
            (folder / task / _CONFIG).write_text(content + "\n", encoding="utf-8")

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written."""
        if per_task and self.library == "timm":
            return f'import timm\n\nmodel = timm.create_model("local-dir:{task}", pretrained=True).eval()'
        make = {"timm": "timm import create_model", "torchvision": "torchvision.models import get_model"}[self.library]
        parts = [f"{task}/model.safetensors"] if per_task else ["model.safetensors", f"heads/{task}.safetensors"]
        state = " | ".join(f'load_file("{part}")' for part in parts)
        return (
            f"from safetensors.torch import load_file\nfrom {make}\n\nstate = {state}\n"
            f'model = {make.split()[-1]}("{self.name}", num_classes=len(state["{self.own[-1]}"]))\n'
            "model.load_state_dict(state)\nmodel.eval()\n"
            f"# images: {self.preprocessing.key}, mean {self.preprocessing.mean}, std {self.preprocessing.std}"
        )

    def _timm_config(self, class_names: Sequence[str]) -> dict[str, Any]:
        own = {k: v for k, v in self.module.pretrained_cfg.items() if k in ("interpolation", "crop_pct", "crop_mode")}
        if self.options.interpolation:
            own["interpolation"] = self.options.interpolation
        if self.options.resize:  # timm makes the shorter side floor(size / crop_pct)
            own |= {"crop_pct": self.preprocessing.size[0] / (self.options.resize + 0.5), "crop_mode": "center"}
        shown = {"mean": list(self.preprocessing.mean), "std": list(self.preprocessing.std)}
        size = {"input_size": [3, *self.preprocessing.size], "num_classes": len(class_names)}
        return {
            "architecture": self.name,
            "num_classes": len(class_names),
            "label_names": list(class_names),
            "pretrained_cfg": {**own, **shown, **size},
        }


def open_base(base: str | Path, options: Options) -> VisionNetwork:
    """Open weights of an architecture, or a folder of timm.

    Raises:
        InputError: an unknown architecture, or weights of another one.
    """
    return VisionNetwork(Path(base), options)


def _architecture(base: Path, given: str) -> tuple[str, str]:
    """Return library and name of an architecture."""
    if not given:
        found = _config(base).get("architecture")
        given = f"timm:{found}" if found else ""
    source, _, name = given.partition(":")
    if source not in ("torchvision", "timm") or not name:
        cure = "set architecture, e.g. torchvision:resnet18"
        refuse("architecture", expected="torchvision:NAME or timm:NAME", got=repr(given), cure=cure)
    return source, name


def _config(path: Path) -> dict[str, Any]:
    """Return config.json of timm's, in a folder or beside a file; empty without one."""
    folder = path if path.is_dir() else path.parent
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _labels(path: Path) -> tuple[str, ...] | None:
    names = _config(path).get("label_names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def _build(source: str, name: str) -> nn.Module:
    """Build an architecture with random weights.

    Raises:
        InputError: the library does not know it.
    """
    try:
        if source == "timm":
            return library("timm").create_model(name, pretrained=False)
        return library("torchvision.models").get_model(name, weights=None)
    except (ValueError, RuntimeError, KeyError) as error:
        got = f"{name} ({' '.join(str(error).split())[:80]})"
        refuse("architecture", expected=f"a name of {source}", got=got, cure="see its list_models()")


def _heads(module: Any, source: str) -> list[str]:
    """Return the names of the modules that make scores: timm's classifier, torchvision's last layer with weights."""
    if source == "timm":
        found = module.get_classifier()
        wanted = {id(part) for part in (found if isinstance(found, (tuple, list)) else (found,))}
        return [name for name, part in module.named_modules() if id(part) in wanted]
    return [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]


def _preprocessing(source: str, module: Any, options: Options) -> Preprocessing:
    """Return the preprocessing of an architecture with what the options change."""
    transforms = library("torchvision.transforms")
    if source == "timm":
        data = library("timm.data")
        own = data.resolve_data_config({}, model=module)
        size, crop = own["input_size"][1:], own["crop_pct"]
        own |= {"interpolation": options.interpolation or own["interpolation"]}
    else:
        size, crop = (224, 224), 7 / 8
        own = {"interpolation": options.interpolation or "bilinear", "mean": _MEAN, "std": _STD}
    if options.size:
        size = (options.size, options.size)
    if options.resize or source == "torchvision":
        resize = options.resize or round(size[0] / crop)
        mode = transforms.InterpolationMode(own["interpolation"])
        steps = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(size)])
        rules = {"resize": resize, "interpolation": own["interpolation"]}
    else:
        own |= {"input_size": (3, *size)}
        steps = before_floats(library("timm.data").create_transform(**own, is_training=False))
        rules = {name: own[name] for name in ("interpolation", "crop_pct", "crop_mode")}
    mean, std = options.mean or own["mean"], options.std or own["std"]
    if len(mean) != 3 or len(std) != 3:
        refuse("mean and std", expected="three numbers", got=f"{len(mean)} and {len(std)}", cure="give one per channel")
    return Preprocessing(
        size=(int(size[0]), int(size[1])),
        shape=lambda image: steps(image.convert("RGB")),
        mean=tuple(mean),
        std=tuple(std),
        rules=said_plainly(**rules),
    )
