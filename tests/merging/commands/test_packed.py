"""Truth values and numbers as text and back."""

import pytest
import torch

from bounds.types import InputError
from merging.commands.packed import pack, pack_numbers, unpack


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_every_bit_comes_back(count):
    correct = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    text = pack(correct)
    assert torch.equal(unpack(text), correct.double())
    assert len(text) <= 6 + 4 * ((count + 7) // 8 + 2) // 3


@pytest.mark.parametrize("text", ["", "8", "8:", "9:gA==", "1:gAA=", "1:g", "x:gA==", "-1:gA==", "1:gA==\n"])
def test_another_text_is_refused(text):
    with pytest.raises(InputError, match="packed examples: expected NUMBER:BASE64"):
        unpack(text)


def test_numbers_come_back_to_the_bit():
    values = torch.tensor([0.1, -3.5e-300, 0.0, 1e300], dtype=torch.float64)
    text = pack_numbers(values)
    assert text.startswith("4f:")
    assert torch.equal(unpack(text), values)
    for wrong in (text.replace("4f", "3f"), text.replace("4f", "4"), text[:-4]):
        with pytest.raises(InputError, match="packed examples"):
            unpack(wrong)
