"""Kinds of models are found by their files, and described alike."""

import dataclasses

import pytest

from bounds.types import InputError
from merging.models import KINDS, open_network


def test_the_kinds_are_the_files_that_open_a_base():
    assert sorted(KINDS) == ["hf_clip", "hf_image", "hf_text", "open_clip", "torch", "vision"]


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_frozen_and_have_defaults_but_for_a_factory(kind):
    options = KINDS[kind].options
    fields = dataclasses.fields(options)
    assert options.__dataclass_params__.frozen
    assert [f.name for f in fields if f.default is dataclasses.MISSING] == (["factory"] if kind == "torch" else [])


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="hf_clip or hf_image or hf_text or open_clip"):
        open_network("bert", "base")
