"""Weights of a model from wherever a library left them: a file, shards with an index, or a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints.formats import check_file
from merging.checkpoints.safetensors import map_safetensors
from merging.checkpoints.state_dicts import read_state_dict

ADAPTER = "adapter_config.json"
"""The file that makes a folder a PEFT adapter."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"
_KNOWN = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Where libraries keep a model's weights in a folder; the first that is there is read."""
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OTHER = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|.*_args)\.(bin|pt|pth)")
"""Files of a training loop that look like weights."""
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(safetensors|bin)$")
_FOREIGN = ("*.gguf", "*.h5", "*.msgpack", "*.onnx")
_SHOWN = 4


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of a model: names of the file -> tensors in the precision and kind they are stored in.

    Args:
        path: a safetensors file; a state dict of ``torch.save`` (.bin, .pt, .pth, .ckpt), also wrapped in a checkpoint
            of a training loop; the index of shards (``*.index.json``); or a folder that holds one of them, as
            transformers and open_clip write it. What a file holds is seen by its content, whatever its name.

    Returns:
        Tensors that are mapped: read from the file when they are used (not those of the format before PyTorch 1.6).
        Whether their numbers are finite is not checked here.

    Raises:
        InputError: no weights there, a damaged or foreign file, a shard or a name that is missing, a pickled module.
    """
    found = weight_files(path)
    if any(file.name == ADAPTER for file in found):
        cure = "read_adapter(path).apply(base), or save it after merge_and_unload()"
        refuse(f"weights {path}", expected="a whole model", got="a PEFT adapter", cure=cure)
    if len(found) == 1:
        return _read_file(found[0])
    index, shards = found[0], found[1:]
    return _joined(index, {shard.name: _read_file(shard) for shard in shards})


def weight_files(path: Path) -> list[Path]:
    """Return the files that :func:`read_weights` or :func:`read_adapter` reads at a path: an index before its shards.

    Raises:
        InputError: nothing there, no weights, more than one file that could be meant, or a shard that is missing.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name == ADAPTER:
        return [path, _adapter_weights(path)]
    if path.name.endswith(INDEX):
        return [path, *_shards(path)]
    shard = _SHARD.search(path.name)
    if shard and int(shard[2]) > 1:
        cure = "name its folder or its index"
        refuse(f"weights {path}", expected="a whole model", got=f"part {int(shard[1])} of {int(shard[2])}", cure=cure)
    check_file(path)
    return [path]


def _read_file(path: Path) -> dict[str, Tensor]:
    return map_safetensors(path) if check_file(path) == "safetensors" else read_state_dict(path)


def _in_folder(folder: Path) -> Path:
    """Return the file of a folder that holds, or lists, the weights; or the configuration of an adapter."""
    known = next((folder / name for name in _KNOWN if (folder / name).is_file()), None)
    if known is not None:
        return known
    if (folder / ADAPTER).is_file():
        return folder / ADAPTER
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    found = [name for name in names if name.endswith((INDEX, *_ENDINGS)) and not _OTHER.fullmatch(name)]
    indices = [name for name in found if name.endswith(INDEX)]
    whole = indices or [name for name in found if not _SHARD.search(name)]
    if len(whole) == 1:
        return folder / whole[0]
    if whole:
        got = f"{len(whole)} files: {', '.join(whole[:_SHOWN])}"
        refuse(f"weights {folder}", expected="one model in the folder", got=got, cure="name the file that is meant")
    if found:
        cure = "copy the index (*.index.json) from where the shards came from"
        refuse(f"weights {folder}", expected="shards with their index", got=f"shards alone: {found[0]}", cure=cure)
    return _refuse_folder(folder, names)


def _refuse_folder(folder: Path, names: list[str]) -> Path:
    """Say what a folder without weights holds instead."""
    foreign = [p.name for pattern in _FOREIGN for p in sorted(folder.glob(pattern))]
    inner = sorted(p.parent.name for p in folder.glob("*/*") if p.name in (*_KNOWN, ADAPTER))
    if foreign:
        got, cure = f"weights of another library: {foreign[0]}", "save the model with safetensors or torch.save"
    elif inner:
        got, cure = f"weights in its folders: {', '.join(inner[:_SHOWN])}", "name one of them"
    elif any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        got, cure = "a tokenizer without weights", "name the folder of the model, or copy model.safetensors into it"
    else:
        got = f"no weights among {', '.join(names[:_SHOWN])}" if names else "no files"
        cure = "name the folder that save_pretrained wrote, or a file of weights"
    refuse(f"weights {folder}", expected="weights in the folder", got=got, cure=cure)


def _adapter_weights(config: Path) -> Path:
    found = next((config.parent / name for name in ADAPTER_WEIGHTS if (config.parent / name).is_file()), None)
    if found is None:
        cure = "copy the adapter again"
        refuse(f"adapter {config.parent}", expected=" or ".join(ADAPTER_WEIGHTS), got="neither", cure=cure)
    check_file(found)
    return found


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: a missing or damaged file, or another content.
    """
    try:
        content = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        refuse(what, expected="a JSON object", got=(str(error).splitlines() or ["nothing"])[0], cure="copy it again")
    if not isinstance(content, dict):
        refuse(what, expected="a JSON object", got=f"a {type(content).__name__}", cure="copy the file again")
    return content


def _weight_map(index: Path) -> dict[str, str]:
    """Return name -> shard, as an index lists them; shards lie in the index's own folder."""
    listed = read_object(index, f"index {index}").get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(_beside(shard) for shard in listed.values()):
        cure = "copy the index again"
        refuse(f"index {index}", expected="weight_map: name -> file beside the index", got=f"{listed!r:.60}", cure=cure)
    return listed


def _beside(shard: object) -> bool:
    return isinstance(shard, str) and bool(shard) and Path(shard).name == shard


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        cure = "copy the missing files beside the index"
        refuse(f"weights {index}", expected=f"its {len(names)} shards", got=f"no {', '.join(missing[:3])}", cure=cure)
    for name in names:
        check_file(index.parent / name)
    return [index.parent / name for name in names]


def _joined(index: Path, shards: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all shards, in the index's order; a name in two shards is taken where the index says."""
    listed = _weight_map(index)
    missing = [f"{name} (in {shard})" for name, shard in listed.items() if name not in shards[shard]]
    if missing:
        got = f"{len(missing)} of them missing: {', '.join(missing[:3])}"
        refuse(
            f"weights {index}", expected="every name of the index in its shard", got=got, cure="copy the shards again"
        )
    others = {name: value for shard in shards.values() for name, value in shard.items()}
    return {name: shards[shard][name] for name, shard in listed.items()} | {
        name: value for name, value in others.items() if name not in listed
    }
