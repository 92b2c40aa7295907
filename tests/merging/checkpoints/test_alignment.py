"""Names of a file made those of a model."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from bounds.types import InputError
from merging.checkpoints import align, with_base_rows

SETTINGS: Any = dict(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3,
    max_position_embeddings=12,
)  # fmt: skip
BERT = BertConfig(**SETTINGS)
CLASSIFIER: Any = BertForSequenceClassification(BERT)
STATE = {name: value.detach() for name, value in CLASSIFIER.named_parameters()}
BARE = {name: value.detach() for name, value in CLASSIFIER.bert.named_parameters()}


def sizes(state):
    return {name: value.shape for name, value in state.items()}


def same(found, state):
    assert list(found) == list(state)
    assert all(found[name].data_ptr() == state[name].data_ptr() for name in state)


def reversed_(state):
    return dict(reversed(state.items()))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "bert.",
        "_orig_mod.",
        "base_model.",
        "encoder.",
        "model.visual.",
        "module.model.",
        "0.auto_model.",
    ],
)
def test_prefixes_are_taken_off_and_put_on(prefix):
    found = align(sizes(BARE), reversed_({prefix + name: value for name, value in BARE.items()}), "x")
    same(found.weights, BARE)
    assert found.unused == ()
    wrapper = "_orig_mod" in prefix
    assert found.renamed == ("39 names with no '_orig_mod'" if wrapper else f"39 names without the prefix {prefix!r}")
    named = {prefix + name: value for name, value in BARE.items()}
    found = align(sizes(named), reversed_(BARE), "x")
    same(found.weights, named)
    assert found.renamed == f"39 names with the prefix {prefix!r} added"


def test_one_prefix_in_place_of_another():
    file = {f"roberta.{name}": value for name, value in BARE.items()}
    expected = {f"model.text.{name}": value for name, value in BARE.items()}
    found = align(sizes(expected), file, "x")
    same(found.weights, expected)
    assert found.renamed == "39 names with the prefix 'model.text.' in place of 'roberta.'"


def test_names_that_fit_are_left_as_they_are():
    found = align(sizes(STATE), STATE, "x")
    same(found.weights, STATE)
    assert (found.renamed, found.unused, found.shorter) == ("", (), ())


def test_a_classifier_s_file_for_the_bare_encoder_and_the_other_way():
    file = STATE | {"bert.embeddings.position_ids": torch.arange(12)[None]}
    found = align(sizes(BARE), file, "x")
    same(found.weights, BARE)
    assert found.unused == ("classifier.weight", "classifier.bias", "bert.embeddings.position_ids")
    with pytest.raises(InputError, match=r"got 2 missing, such as classifier\.bias, classifier\.weight"):
        align(sizes(STATE), BARE, "x")
    found = align(sizes(STATE), BARE, "x", optional=frozenset({"classifier.weight", "classifier.bias"}))
    assert set(STATE) - set(found.weights) == {"classifier.weight", "classifier.bias"}


def test_a_head_of_another_shape():
    file = STATE | {"classifier.weight": torch.zeros(7, 16), "classifier.bias": torch.zeros(7)}
    with pytest.raises(InputError, match=r"x, classifier\.weight: expected shape \[3, 16\]; got \[7, 16\]"):
        align(sizes(STATE), file, "x")
    found = align(sizes(STATE), file, "x", optional=frozenset({"classifier.weight", "classifier.bias"}))
    assert found.unused == ("classifier.weight", "classifier.bias")
    assert "classifier.weight" not in found.weights


def test_a_projection_beside_a_tower_whose_names_change():
    tower = {f"vision_model.{name}": value for name, value in BARE.items()}
    expected = {"visual_projection.weight": torch.zeros(3, 3)} | tower
    file = BARE | {"visual_projection.weight": torch.ones(3, 3)}
    found = align(sizes(expected), file, "x")
    assert list(found.weights) == list(expected)
    assert found.renamed == "39 names with the prefix 'vision_model.' added"


def towers(depth: int, width: int) -> dict[str, torch.Tensor]:
    """A visual tower, and a text tower of the same shapes, as in a small CLIP."""
    text = {f"transformer.resblocks.{i}.w": torch.randn(width, width) for i in range(depth)}
    visual = {f"visual.{name}": torch.randn(width, width) for name in text}
    return {"visual.conv1.weight": torch.randn(width, 3), "visual.proj": torch.randn(width, 2), **visual, **text}


def test_a_text_tower_of_the_same_shapes_is_not_mistaken_for_the_visual_one():
    file = towers(3, 4)
    expected = {n.removeprefix("visual."): v for n, v in file.items() if n.startswith("visual.")}
    for prefix in ("", "model.", "module.model."):
        named = {prefix + name: value for name, value in file.items()}
        found = align(sizes(expected), named, "x")
        same(found.weights, expected)
        assert len(found.unused) == 3
        del named[f"{prefix}visual.transformer.resblocks.2.w"]
        with pytest.raises(InputError, match=r"got 1 missing, such as transformer\.resblocks\.2\.w"):
            align(sizes(expected), named, "x")


def test_two_sets_that_fit_equally_are_refused():
    both = {f"{k}.{name}": value for k in ("student", "teacher") for name, value in BARE.items()}
    with pytest.raises(InputError, match=r"several, under 'student\.' and 'teacher\.'; keep one .*--prefix"):
        align(sizes(BARE), both, "x")
    same(align(sizes(BARE), BARE | both, "x").weights, BARE)


def test_old_layer_norms_and_wrappers_within_names():
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for n, v in BARE.items()}  # fmt: skip
    found = align(sizes(BARE), {f"bert.{n}": v for n, v in old.items()}, "x")
    same(found.weights, BARE)
    assert (
        found.renamed == "39 names without the prefix 'bert.' and 10 names with 'beta' as 'bias', 'gamma' as 'weight'"
    )
    inner = {n.replace("layer.1.", "layer.1._orig_mod._fsdp_wrapped_module."): v for n, v in BARE.items()}
    same(align(sizes(BARE), inner, "x").weights, BARE)
    for scale in ({"block.gamma": torch.ones(3)}, {"block.gamma": torch.ones(3), "block.weight": torch.ones(4)}):
        same(align(sizes(scale), scale, "x").weights, scale)  # ConvNeXt's own gamma
    two = {"a.gamma": torch.ones(3), "a.weight": torch.zeros(3)}
    assert float(align({"a.weight": torch.Size([3])}, two, "x").weights["a.weight"][0]) == 0


def test_missing_names_say_what_there_is():
    with pytest.raises(InputError, match=r"^x: expected the names of the model; got 39 missing.*1 tensors, such as"):
        align(sizes(BARE), {"a": torch.ones(2)}, "x")
    with pytest.raises(InputError, match="39 missing"):
        align(sizes(BARE), {}, "x")
    other = BertModel(BertConfig(**{**SETTINGS, "intermediate_size": 20})).state_dict()
    with pytest.raises(InputError, match=r"expected shape \[24, 16\]; got \[20, 16\]; use weights of the base's own"):
        align(sizes(BARE), other, "x")


def test_a_deeper_model_is_not_cut_short():
    deep = BertModel(BertConfig(**{**SETTINGS, "num_hidden_layers": 3})).state_dict()
    for prefix in ("", "module.bert."):
        with pytest.raises(InputError, match=r"the layers of the model, 2; got a module encoder\.layer\.2 more"):
            align(sizes(BARE), {prefix + name: value for name, value in deep.items()}, "x")
    with pytest.raises(InputError, match=r"16 missing, such as encoder\.layer\.2\."):
        align(sizes(deep), BARE, "x")
    body = {"0.weight": torch.ones(4, 3), "2.weight": torch.ones(4, 4)}
    found = align(sizes(body), body | {"4.weight": torch.ones(2, 4)}, "x")  # a head after the body
    assert found.unused == ("4.weight",)


WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("rows", [25, 34])
def test_vocabularies_of_different_length(rows):
    file = {f"bert.{name}": value for name, value in BARE.items()} | {f"bert.{WORDS}": torch.randn(rows, 16)}
    with pytest.raises(InputError, match=rf"expected 30 rows, as in the base; got {rows} rows; set vocabulary: common"):
        align(sizes(BARE), file, "x")
    found = align(sizes(BARE), file, "x", common=True)
    kept = min(rows, 30)
    assert torch.equal(found.weights[WORDS], file[f"bert.{WORDS}"][:kept])
    assert found.shorter == ((WORDS,) if rows < 30 else ())
    whole = with_base_rows(BARE, found.weights)
    assert sizes(whole) == sizes(BARE)
    assert torch.equal(whole[WORDS][kept:], BARE[WORDS][kept:])
    assert torch.equal(whole[WORDS][:kept], file[f"bert.{WORDS}"][:kept])
    assert all(whole[name] is found.weights[name] for name in BARE if name != WORDS)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("lm_head.weight", True),
        ("lm_head.bias", True),
        ("cls.predictions.bias", True),
        ("transformer.wte.weight", True),
        ("embeddings.position_embeddings.weight", False),
        ("decoder.layers.0.fc.weight", False),
        ("class_embedding", False),
        ("visual.positional_embedding", False),
        ("encoder.layer.0.output.dense.bias", False),
    ],
)
def test_only_tables_of_tokens_are_cut(name, cut):
    shape = torch.Size([5] if name.endswith(("bias", "class_embedding")) else [5, 2])
    rest = {"a": torch.ones(2), "b": torch.ones(3)}
    expected, file = {name: shape, **sizes(rest)}, {name: torch.ones(7, *shape[1:]), **rest}
    if cut:
        assert align(expected, file, "x", common=True).weights[name].shape == shape
    else:
        with pytest.raises(InputError, match="use weights of the base's own architecture"):
            align(expected, file, "x", common=True)


def test_tied_and_integer_tensors_are_left_alone():
    net = nn.BatchNorm1d(3)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    expected = sizes(dict(net.named_parameters())) | {"running_mean": torch.Size([3])}
    found = align(expected, state, "x")
    assert list(found.weights) == ["weight", "bias", "running_mean"]
    assert found.unused == ("module.running_var", "module.num_batches_tracked")
