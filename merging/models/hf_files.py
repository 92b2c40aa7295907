"""Folders of transformers: configurations in, whole models out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from bounds.types import refuse
from merging.models.base import Export, TaskHead
from merging.models.images import Preprocessing, said_plainly
from merging.models.libraries import library
from merging.models.modules import Read
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
def without_first_weights() -> Iterator[None]:
    """Leave weights of models that are built inside as memory has them: for models that files then fill whole."""
    newer = find_spec("transformers.initialization") is not None  # transformers 5
    with library("transformers.initialization" if newer else "transformers.modeling_utils").no_init_weights():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and reports: they are no part of this program's output."""
    logging = library("transformers.utils.logging")
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def class_names(config: Any) -> tuple[str, ...] | None:
    """Return the names of classes, unless they are the library's LABEL_0, LABEL_1, ..."""
    names = [str(config.id2label[index]) for index in sorted(config.id2label)] if config.id2label else []
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else tuple(names)


def loaded(kind: Any, folder: Path) -> Read:
    """Return the tensors of a folder under the names that this release of transformers gives them.

    Where the library renames what it reads (vision transformers, since version 5), it must be asked.

    Args:
        kind: the library's class, with ``from_pretrained``.
        folder: as save_pretrained writes it.

    Raises:
        InputError: what the library does not read.
    """
    try:
        with quiet():
            model, found = kind.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        got, cure = " ".join(str(error).split())[:120], "copy the folder again, or save the model with save_pretrained"
        refuse(f"weights {folder}", expected=f"a folder that {kind.__name__} loads", got=got, cure=cure)
    state = model.float().state_dict()
    return Read({name: value for name, value in state.items() if name not in set(found["missing_keys"])})


def config_for(config: Any, head: TaskHead) -> Any:
    """Return a base's configuration with the classes of a head."""
    config = deepcopy(config)
    config.num_labels = len(head.class_names)
    config.id2label = dict(enumerate(head.class_names))
    config.label2id = {name: index for index, name in enumerate(head.class_names)}
    return config


def processing(processor: Any) -> Preprocessing:
    """Return what an image processor does; its last two steps, to floats and normalised, are left to the network.

    Raises:
        InputError: a processor that does not rescale bytes to [0, 1] and normalise them.
    """
    if not (processor.do_rescale and processor.do_normalize) or abs(255 * processor.rescale_factor - 1) > 1e-6:
        cure = "prepare images yourself, as floats, or restore the base's preprocessor_config.json"
        refuse("preprocessing", expected="rescaling by 1/255 and normalising", got="not both", cure=cure)

    def shape(image: Any) -> Tensor:
        return processor([image], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]

    probe = shape(library("PIL.Image").new("RGB", (61, 47)))
    content = {
        name: value for name, value in processor.to_dict().items() if not name.startswith(("image_m", "image_s"))
    }
    return Preprocessing(
        size=(probe.shape[-2], probe.shape[-1]),
        shape=shape,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        rules=said_plainly(**content),
    )
