"""Images as inputs: resized and cropped by the model's own rules, kept as bytes, normalised inside the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.types import refuse
from merging.models.libraries import library


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What an image goes through on its way into a network, as its library does it.

    Pixels wait as uint8, a quarter of the memory of float32; scores are the library's to rounding.
    """

    size: tuple[int, int]
    """Height and width that the network takes."""
    shape: Callable[[Any], Any]
    """PIL image -> PIL image, or uint8 pixels [3, H, W], of that size."""
    mean: Sequence[float]
    """Of the channels, of pixels in [0, 1]."""
    std: Sequence[float]
    """Of the channels."""
    rules: str
    """What ``shape`` does, in words that two of the same have in common."""

    @property
    def key(self) -> str:
        """All that prepared pixels depend on."""
        return f"pixels {list(self.size)}, {self.rules}"

    def pixels(self, examples: Sequence[Any]) -> Tensor:
        """Return uint8 [N, 3, H, W] of images; of float arrays [3, H, W], that are prepared already, float32.

        Images are PIL's, or uint8 arrays [H, W] (grey) or [H, W, 3].

        Raises:
            InputError: something else, or images of both kinds.
        """
        found = [self._one(example) for example in examples]
        if len({image.dtype for image in found}) != 1:
            got = "both" if found else "none"
            refuse("images", expected="all pixels or all prepared floats", got=got, cure="hand over one kind")
        return torch.stack(found)

    def _one(self, example: Any) -> Tensor:
        array = np.asarray(example) if isinstance(example, (np.ndarray, Tensor)) else None
        if array is not None and array.dtype.kind == "f":
            if array.shape != (3, *self.size):
                cure = "hand over images as uint8, which are resized here"
                refuse("image", expected=f"floats of shape {[3, *self.size]}", got=list(array.shape), cure=cure)
            return torch.from_numpy(array.astype(np.float32))
        shaped = self.shape(as_image(example))
        if not isinstance(shaped, Tensor):
            shaped = torch.from_numpy(np.array(shaped.convert("RGB"))).movedim(-1, 0)
        if shaped.dtype != torch.uint8 or tuple(shaped.shape) != (3, *self.size):
            got = f"{shaped.dtype} {list(shaped.shape)}"
            refuse("image", expected=f"pixels {[3, *self.size]}", got=got, cure="set the size that the network takes")
        return shaped.contiguous()

    def normalised(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (pixels/255 - mean)/std; floats are prepared already."""
        if pixels.is_floating_point():
            return pixels.to(dtype)
        mean, std = (torch.tensor(v, dtype=dtype, device=pixels.device)[:, None, None] for v in (self.mean, self.std))
        return (pixels.to(dtype) / 255 - mean) / std


def as_image(example: Any) -> Any:
    """Return an image as PIL's.

    Raises:
        InputError: something that is none.
    """
    image = library("PIL.Image")
    if isinstance(example, image.Image):
        return example
    array = np.asarray(example) if isinstance(example, (np.ndarray, Tensor)) else None
    if (
        array is None
        or array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] != 3)
    ):
        got = type(example).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
        cure = "open files with PIL, or pass bytes with the channels last"
        refuse("image", expected="a PIL image, or uint8 [H, W] or [H, W, 3]", got=got, cure=cure)
    return image.fromarray(array)


def before_floats(transform: Any) -> Callable[[Any], Any]:
    """Return the steps of a composed transform of torchvision that come before pixels are made floats and normalised.

    Raises:
        InputError: a transform of another form.
    """
    names = [type(step).__name__ for step in transform.transforms]
    at = next((i for i, name in enumerate(names) if name.endswith("ToTensor")), None)
    if at is None or names[at + 1 :] != ["Normalize"]:
        cure = "prepare the images yourself, as floats"
        refuse("preprocessing", expected="steps, ToTensor and Normalize", got=names, cure=cure)
    return type(transform)(transform.transforms[:at])


def said_plainly(**rules: Any) -> str:
    """Return rules as one line of JSON, sorted."""
    return json.dumps(rules, sort_keys=True, default=str)
