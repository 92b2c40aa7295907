"""Folders of transformers: configurations in, whole models out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bounds.types import refuse
from merging.models.base import Export
from merging.models.libraries import library
from merging.models.writing import converted


def read_config(folder: Path, kind: str | None = None) -> Any:
    """Read config.json of a folder.

    Args:
        folder: as save_pretrained writes it.
        kind: the ``model_type`` that it must have; None: any.

    Raises:
        InputError: there is none that transformers can read, or of another kind.
    """
    transformers = library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        got = " ".join(str(error).split())[:120]
        cure = "name the folder that save_pretrained wrote"
        refuse(f"model {folder}", expected="a folder with transformers' config.json", got=got, cure=cure)
    if kind is not None and config.model_type != kind:
        cure = "name the base model's folder, or another kind of model"
        refuse(f"model {folder}", expected=f"a model of type {kind}", got=config.model_type, cure=cure)
    return config


def save_pretrained(model: Any, folder: Path, state: Mapping[str, Tensor], export: Export) -> None:
    """Write a folder of transformers: configuration and weights, in shards.

    Args:
        model: the library's, on the meta device: its class and configuration.
        folder: made here.
        state: its weights.
        export: dtype and size of shards.
    """
    tensors = converted(state, export.dtype)
    with quiet():
        model.to(export.dtype).save_pretrained(folder, state_dict=tensors, max_shard_size=export.shard_size)


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars: they are no part of this program's output."""
    logging = library("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
