"""Which examples of a split a model gets right, as text: their number and their bits in base64."""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np
import torch
from torch import Tensor

from bounds.types import refuse

_TEXT = re.compile(r"(\d{1,12}):([A-Za-z0-9+/]*={0,2})")


def pack(correct: Tensor) -> str:
    """Return ``N:BASE64`` of truth values [N], eight to a byte, the first in the highest bit."""
    bits = np.packbits(correct.to(torch.bool).cpu().numpy())
    return f"{len(correct)}:{base64.b64encode(bits.tobytes()).decode()}"


def unpack(text: str) -> Tensor:
    """Return the truth values [N] of a packed text as float64 of 0 and 1, ready for means.

    Raises:
        InputError: a text that :func:`pack` does not return.
    """
    found = _TEXT.fullmatch(text)
    try:
        data = base64.b64decode(found[2], validate=True) if found else b""
    except binascii.Error:
        found, data = None, b""
    if found is None or len(data) != (int(found[1]) + 7) // 8:
        refuse("packed examples", expected="NUMBER:BASE64 of a bit each", got=repr(text[:40]), cure="measure again")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=int(found[1]))
    return torch.from_numpy(bits.astype(np.float64))
