"""PEFT adapters: LoRA factors made the weights of an expert. The product is formed; factors are never averaged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import Params, refuse
from merging.checkpoints.alignment import find_change, matches
from merging.checkpoints.files import ADAPTER, read_object, weight_files
from merging.checkpoints.formats import check_file
from merging.checkpoints.safetensors import map_safetensors
from merging.checkpoints.state_dicts import read_state_dict

_FACTOR = re.compile(r"(?:(?P<module>.*)\.)?lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?")
_CURE = "save the expert after merge_and_unload()"
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
)
"""Settings under which an expert is more, or something else, than θ_0 + (α/r)·BA."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to start the factors that leave the base's own weights as they are; others (pissa, olora, ...) change them."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """LoRA of one module: ``down`` A and ``up`` B as PEFT keeps them, and the ``scale`` of their product.

    A linear layer has A [r, in] and B [out, r]; a convolution A [r, in, ...] and B [out, r, 1, ...]; an embedding
    (``embedding``) A [r, tokens] and B [width, r].
    """

    down: Tensor
    up: Tensor
    scale: float
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of :meth:`product`."""
        shape = (len(self.up), *self.down.shape[1:])
        return shape[::-1] if self.embedding else shape

    def product(self, dtype: torch.dtype) -> Tensor:
        """ΔW = scale · BA, formed in ``dtype``."""
        product = self.up.to(dtype).flatten(1) @ self.down.to(dtype).flatten(1)
        product = product.T if self.embedding else product.reshape(self.shape)
        return product * self.scale


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter (arXiv 2106.09685) as PEFT saves it.

    ``modules`` are its factors, by module of the network it was trained on; ``saved`` are tensors that it replaces
    whole (``modules_to_save``, biases), by name: heads are among them. ``transposed`` says that weights are [in, out]
    where shapes do not tell (``fan_in_fan_out``, GPT-2). ``base`` is the model that it names as its own; it may be a
    path that is gone, and is not checked.
    """

    modules: Mapping[str, Factors]
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    transposed: bool = False
    base: str | None = None
    path: Path

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about it: ranks, modules and the base that it names."""
        ranks = sorted({len(factors.down) for factors in self.modules.values()})
        shown = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "no factors"
        named = f", trained on {self.base}" if self.base else ""
        return (f"LoRA adapter, {shown}, on {len(self.modules)} modules{named}",)

    def apply(self, base: Params) -> dict[str, Tensor]:
        """Return the expert θ_0 + ΔW, in at least float32, under the names of the base and in its order.

        ``nn.MultiheadAttention`` is refused: PEFT 0.21 adds the product of its output twice, in its own forward too.
        Names fit also where one of base and adapter is the bare encoder of the other's network. Saved tensors that the
        base has replace its own; the others (heads) are not in the result, but in ``saved``. Tensors that the adapter
        does not change are the base's own, if their precision allows it.

        Raises:
            InputError: a module that the base lacks, or shapes that do not fit.
        """
        sizes = {name: tuple(value.shape) for name, value in base.items()}
        found = self._places(sizes)
        expert = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in base.items()}
        transposed = self._orientations(found, sizes)
        for module, name in found.items():
            delta = self.modules[module].product(expert[name].dtype)
            expert[name] = expert[name] + (delta.T if transposed[module] else delta).reshape(sizes[name])
        for name, value in self._replaced(sizes).items():
            expert[name] = value.to(expert[name].dtype)
        return expert

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return sorted shapes (an orientation is no matter of names) of all that the adapter may change, by name."""
        shapes = {_name(module): tuple(sorted(factors.shape)) for module, factors in self.modules.items()}
        return shapes | {name: tuple(sorted(value.shape)) for name, value in self.saved.items()}

    def _matched(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Return name in the adapter -> name in the base."""
        sorted_sizes = {name: tuple(sorted(size)) for name, size in sizes.items()}
        shapes = self._shapes()
        change = find_change(sorted_sizes, shapes, f"adapter {self.path}")
        return {old: name for name, old in matches(sorted_sizes, shapes, change).items()}

    def _places(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Return module -> name of the base's tensor that its factors change."""
        matched = self._matched(sizes)
        places: dict[str, str] = {}
        for module, factors in self.modules.items():
            name = matched.get(_name(module))
            if name is None:
                got = f"no tensor of the base for its module {module}"
                refuse(f"adapter {self.path}", expected="modules of the base", got=got, cure=_CURE)
            either = not factors.embedding and len(factors.shape) == 2 and factors.shape[::-1] == sizes[name]
            if factors.shape != sizes[name] and not either:
                got = f"a product of shape {list(factors.shape)}"
                cure = "use the base that the adapter was trained on"
                refuse(f"adapter {self.path}, {module}", expected=f"shape {list(sizes[name])}", got=got, cure=cure)
            places[module] = name
        return places

    def _orientations(self, places: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
        """Return which products are transposed: by shape where it tells, as the configuration says for squares.

        Raises:
            InputError: the shapes of some modules say yes and of others no, and there are squares.
        """
        linear = [m for m, name in places.items() if len(sizes[name]) == 2 and not self.modules[m].embedding]
        told = {m: self.modules[m].shape != sizes[places[m]] for m in linear if len(set(sizes[places[m]])) > 1}
        squares = [module for module in linear if module not in told]
        if squares and len(set(told.values())) > 1:
            got = f"{squares[0]} is square, and other modules are of both kinds"
            refuse(f"adapter {self.path}", expected="weights all [out, in] or all [in, out]", got=got, cure=_CURE)
        return dict.fromkeys(places, False) | dict.fromkeys(squares, self.transposed) | told

    def _replaced(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return name of the base -> saved tensor in its place."""
        matched = self._matched(sizes)
        replaced = {matched[name]: value for name, value in self.saved.items() if name in matched}
        for name, value in replaced.items():
            if value.shape != sizes[name]:
                cure = "leave the head out of the base, or use the base that the adapter was trained on"
                shape = list(sizes[name])
                refuse(f"adapter {self.path}, {name}", expected=f"shape {shape}", got=list(value.shape), cure=cure)
        return replaced


def _name(module: str) -> str:
    return f"{module}.weight" if module else "weight"


def is_adapter(path: Path) -> bool:
    """Whether a path is a PEFT adapter: a folder with its configuration, or that file."""
    path = Path(path)
    return (path / ADAPTER).is_file() if path.is_dir() else path.name == ADAPTER and path.is_file()


def read_adapter(path: Path) -> Adapter:
    """Read a LoRA adapter that PEFT saved: folder, or its ``adapter_config.json``.

    Scales are α/r, or α/√r (``use_rslora``), with each module's own rank and α (``rank_pattern``, ``alpha_pattern``).

    Raises:
        InputError: no adapter, a damaged one, or one that is not plain LoRA (DoRA, IA3, prefixes, PiSSA, ...).
    """
    path = Path(path)
    folder = path.parent if path.name == ADAPTER else path
    what = f"adapter {folder}"
    if not is_adapter(path):
        refuse(what, expected=f"a folder with {ADAPTER}", got="none there", cure="name the folder that PEFT saved")
    config = read_object(folder / ADAPTER, what)
    _check_plain(config, what)
    weights = weight_files(folder / ADAPTER)[1]
    read = map_safetensors if check_file(weights) == "safetensors" else read_state_dict
    tensors = {_stripped(name): value for name, value in read(weights).items() if ".original_module." not in name}
    base = config.get("base_model_name_or_path")
    modules, saved = _modules(tensors, config, what)
    return Adapter(
        modules=modules,
        saved=saved,
        transposed=config.get("fan_in_fan_out") is True,
        base=base if isinstance(base, str) and base else None,
        path=folder,
    )


def _check_plain(config: Mapping[str, Any], what: str) -> None:
    """Refuse an adapter whose expert is not θ_0 + scale · BA."""
    if config.get("peft_type") != "LORA":
        refuse(what, expected="peft_type LORA", got=str(config.get("peft_type"))[:40], cure=_CURE)
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if used:
        refuse(what, expected="plain LoRA", got=", ".join(used), cure=_CURE)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        got = f"init_lora_weights={start}, which changes the base's weights"
        refuse(what, expected="factors on the base's own weights", got=got, cure=_CURE)


def _stripped(name: str) -> str:
    """Return a name of the network that was trained: PEFT's wrappers are taken off."""
    parts = name.removeprefix("base_model.model.").split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts = parts[:at] + parts[at + 1 + (parts[at + 1 : at + 2] == ["default"]) :]
    return ".".join(part for part in parts if part != "base_layer")


def _modules(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], what: str
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Sort tensors into factors, by module, and whole ones."""
    found: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    saved = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None and "lora_" in name:
            refuse(what, expected="plain LoRA", got=f"a tensor {name}", cure=_CURE)
        if match is None:
            saved[name] = value
            continue
        module = match["module"] or ""
        found.setdefault(module, {})[match["side"]] = value
        embeddings |= {module} if match["embedding"] else set()
    for module, sides in found.items():
        fits = len(sides) == 2 and all(side.ndim > 1 and side.numel() for side in sides.values())
        if not fits or sides["B"].flatten(1).shape[1] != len(sides["A"]):
            shown = {side: list(value.shape) for side, value in sides.items()}
            refuse(f"{what}, {module}", expected="factors A [r, in] and B [out, r]", got=shown, cure=_CURE)
    modules = {
        module: Factors(
            down=sides["A"],
            up=sides["B"],
            scale=_scale(module, len(sides["A"]), config, what),
            embedding=module in embeddings,
        )
        for module, sides in found.items()
    }
    if not modules and not saved:
        refuse(what, expected="factors", got="no tensors", cure="copy the adapter again")
    return modules, saved


def _scale(module: str, rank: int, config: Mapping[str, Any], what: str) -> float:
    """Return α/r or α/√r; the patterns of ``alpha_pattern`` are expressions for the end of a module's name."""
    patterns = config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha")
    try:
        alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), alpha)
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # pyright: ignore
    except (re.error, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        refuse(what, expected="lora_alpha and alpha_pattern as PEFT writes them", got=error, cure="copy it again")
