"""What every example of a split adds to a figure, as text: right or wrong (a bit each), or a number, in base64."""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np
import torch
from torch import Tensor

from bounds.types import refuse

_TEXT = re.compile(r"(\d{1,12})(f?):([A-Za-z0-9+/]*={0,2})")


def pack(correct: Tensor) -> str:
    """Return ``N:BASE64`` of truth values [N], eight to a byte, the first in the highest bit."""
    bits = np.packbits(correct.to(torch.bool).cpu().numpy())
    return f"{len(correct)}:{base64.b64encode(bits.tobytes()).decode()}"


def pack_numbers(values: Tensor) -> str:
    """Return ``Nf:BASE64`` of numbers [N], as little-endian float64."""
    numbers = values.to(torch.float64).cpu().numpy().astype("<f8")
    return f"{len(values)}f:{base64.b64encode(numbers.tobytes()).decode()}"


def unpack(text: str) -> Tensor:
    """Return the truth values (as 0 and 1) or the numbers [N] of a packed text in float64, ready for means.

    Raises:
        InputError: a text that :func:`pack` or :func:`pack_numbers` does not return.
    """
    found = _TEXT.fullmatch(text)
    try:
        data = base64.b64decode(found[3], validate=True) if found else b""
    except binascii.Error:
        found, data = None, b""
    wanted = 0 if found is None else 8 * int(found[1]) if found[2] else (int(found[1]) + 7) // 8
    if found is None or len(data) != wanted:
        refuse("packed examples", expected="NUMBER:BASE64 of a bit each", got=repr(text[:40]), cure="measure again")
    if found[2]:
        return torch.from_numpy(np.frombuffer(data, dtype="<f8").astype(np.float64))
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=int(found[1]))
    return torch.from_numpy(bits.astype(np.float64))
