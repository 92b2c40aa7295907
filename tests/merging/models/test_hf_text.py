"""Sequence classifiers: scores equal transformers' own, in every direction of reading and writing."""

import json
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bounds.autodiff import differentiable, vmap_or_loop
from bounds.types import InputError
from merging.models import open_network
from tests.merging.models.worlds import PAIRS, TEXTS, WORDS, followed, save_text, shaken, text_config, tokenizer

KINDS = ("bert", "roberta", "distilbert", "gpt2")
NAMES = ["negative", "neutral", "positive"]
THREE = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
AUTO = "AutoModelForSequenceClassification"


def library_scores(folder, texts, pad=None):
    """What a user of transformers computes: one padded batch through from_pretrained."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval().float()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
        model.config.pad_token_id = tokens.pad_token_id
    columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    with torch.no_grad():
        return model(**tokens(*columns, padding=True, return_tensors="pt")).logits


def opened(path, **options) -> Any:
    return open_network("hf_text", path, {"max_length": 20, **options})


def close(scores, expected):
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() < 1e-5, (scores - expected).abs().max()


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_experts_scores_are_the_librarys(tmp_path, kind, bare, texts):
    save_text(tmp_path / "base", kind, 0, "AutoModel" if bare else AUTO)
    save_text(tmp_path / "expert", kind, 1, AUTO, **THREE)
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "expert")
    assert expert.parameters.keys() == network.parameters.keys()
    assert expert.class_names == tuple(NAMES)
    forward = network.forward(expert, NAMES, [])
    inputs = network.prepare(texts)
    assert inputs["input_ids"].shape == (len(texts), 20)
    close(forward(expert.parameters, inputs), library_scores(tmp_path / "expert", texts))
    alone = torch.cat([forward(expert.parameters, network.prepare([text])) for text in texts])
    close(alone, library_scores(tmp_path / "expert", texts))


@pytest.mark.parametrize("kind", KINDS)
def test_every_derivative_is_there(tmp_path, kind):
    save_text(tmp_path / "base", kind, 0, AUTO, **THREE)
    network = opened(tmp_path / "base", dtype="float64")
    forward, theta, inputs = network.forward(None, NAMES, []), network.parameters, network.prepare(TEXTS)
    step = {name: torch.randn_like(value) for name, value in theta.items()}
    with differentiable():
        scores, moved, *_ = torch.func.jvp(lambda p: forward(p, inputs), (theta,), (step,))
        small = {name: value + 1e-6 * step[name] for name, value in theta.items()}
        assert torch.allclose((forward(small, inputs) - scores) / 1e-6, moved, rtol=1e-3, atol=1e-4)
        gradient = torch.func.vjp(lambda p: forward(p, inputs), theta)[1](torch.ones_like(scores))[0]
        assert moved.sum() == pytest.approx(sum((gradient[n] * step[n]).sum().item() for n in theta), rel=1e-6)

        def one(example):
            return forward(theta, {name: value[None] for name, value in example.items()})[0]

        assert torch.allclose(torch.vmap(one)(inputs), scores, atol=1e-12)  # no loop: masks are handed on in 4-D
        assert torch.allclose(vmap_or_loop(one, inputs), scores, atol=1e-12)


def test_a_pooler_that_the_base_lacks_is_the_experts(tmp_path):
    torch.manual_seed(0)
    shaken(transformers.BertForMaskedLM(text_config("bert")), 0).save_pretrained(tmp_path / "base")
    save_text(tmp_path / "expert", "bert", 1, AUTO, **THREE)
    network = opened(tmp_path / "base")
    assert not any("pooler" in name for name in network.parameters)
    expert = network.expert(tmp_path / "expert")
    assert {name.split(".")[-2] for name in expert.head} == {"dense", "classifier"}
    forward = network.forward(expert, NAMES, [])  # its tokenizer is the expert's
    close(forward(expert.parameters, network.prepare(TEXTS)), library_scores(tmp_path / "expert", TEXTS))
    assert any("cls" in note for note in network.notes)
    with_pooler = opened(tmp_path / "expert")
    assert any("pooler" in name for name in with_pooler.parameters)


def test_half_precision_is_widened_and_written(tmp_path):
    model = save_text(tmp_path / "base", "bert", 0, AUTO, **THREE)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer(eos_token="[SEP]").save_pretrained(tmp_path / "half")
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "half")
    assert {value.dtype for value in expert.parameters.values()} == {torch.float32}
    scores = network.forward(expert, [], [])(expert.parameters, network.prepare(TEXTS))
    close(scores, library_scores(tmp_path / "half", TEXTS))
    heads = {"films": network.head(expert, NAMES)}
    network.write(expert.parameters, tmp_path / "out", heads, torch.bfloat16)
    assert {v.dtype for v in load_file(tmp_path / "out/films/model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/films/config.json").read_text())["dtype"] == "bfloat16"
    close(library_scores(tmp_path / "out/films", TEXTS), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_folder_is_loaded_with_equal_scores(tmp_path, kind, monkeypatch):
    save_text(tmp_path / "base", kind, 0, "AutoModel")
    save_text(tmp_path / "one", kind, 1, AUTO, **THREE)
    save_text(tmp_path / "two", kind, 2, AUTO)
    network = opened(tmp_path / "base")
    experts = {task: network.expert(tmp_path / task) for task in ("one", "two")}
    merged = {n: (experts["one"].parameters[n] + experts["two"].parameters[n]) / 2 for n in network.parameters}
    heads = {"one": network.head(experts["one"], []), "two": network.head(experts["two"], ["no", "yes"])}
    files = network.write(merged, tmp_path / "out", heads, shard_size="5KB")
    assert len([file for file in files if file.suffix == ".safetensors"]) > 4  # in shards
    assert all(file.is_file() for file in files)
    for task, head in heads.items():
        scores = network.classifier(head)(merged, network.prepare(TEXTS))
        close(library_scores(tmp_path / "out" / task, TEXTS), scores)
        config: Any = transformers.AutoConfig.from_pretrained(tmp_path / "out" / task)
        assert tuple(config.id2label.values()) == head.class_names
        close(followed(network, tmp_path / "out", monkeypatch, task, texts=TEXTS)["scores"], scores)
        other = {**merged, next(iter(merged)): torch.zeros_like(merged[next(iter(merged))])}
        assert not torch.allclose(network.classifier(head)(other, network.prepare(TEXTS)), scores, atol=1e-3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_encoder_once_and_heads_beside_it(tmp_path, monkeypatch):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    save_text(tmp_path / "one", "bert", 1, AUTO, **THREE)
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "one")
    network.write(expert.parameters, tmp_path / "out", {"one": network.head(expert, [])}, per_task=False)
    bare = transformers.AutoModel.from_pretrained(tmp_path / "out")
    original = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").bert.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in bare.state_dict().items())
    assert sorted(load_file(tmp_path / "out/heads/one.safetensors")) == ["classifier.bias", "classifier.weight"]
    found = followed(network, tmp_path / "out", monkeypatch, "one", per_task=False, texts=TEXTS)
    close(found["scores"], library_scores(tmp_path / "one", TEXTS))
    again = opened(tmp_path / "out")
    assert again.parameters.keys() == network.parameters.keys()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("base_head", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_adapter_is_an_expert(tmp_path, kind, base_head):
    save_text(tmp_path / "base", kind, 0, AUTO if base_head else "AutoModel")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    names = {"bert": (["query", "value"], ["classifier"]), "gpt2": (["c_attn"], ["score"])}[kind]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=names[0],
        modules_to_save=names[1],
        task_type="SEQ_CLS",
        fan_in_fan_out=kind == "gpt2",
    )
    adapted = shaken(peft.get_peft_model(model, config), 5, 0.0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                value.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    network = opened(tmp_path / "base")
    expert = network.expert(tmp_path / "adapter")
    inputs = network.prepare(TEXTS)
    model.config.pad_token_id = network.module.config.pad_token_id
    with torch.no_grad():
        expected = adapted(**inputs).logits
    close(network.forward(expert, NAMES, [])(expert.parameters, inputs), expected)
    assert any("rank 3" in note for note in expert.notes)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_may_change_the_bases_head(tmp_path):
    save_text(tmp_path / "base", "bert", 0, AUTO, **THREE)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["key", "classifier"]))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            value.normal_(std=0.3) if "lora" in name else None
    adapted.eval().save_pretrained(tmp_path / "adapter")
    network = opened(tmp_path / "base")
    expert, inputs = network.expert(tmp_path / "adapter"), network.prepare(TEXTS)
    with torch.no_grad():
        close(network.forward(expert, NAMES)(expert.parameters, inputs), adapted(**inputs).logits)
    assert not torch.equal(expert.head["classifier.weight"], network.base_head["classifier.weight"])


def test_long_texts_are_cut_to_the_length(tmp_path):
    save_text(tmp_path / "base", "bert", 0, AUTO, **THREE)
    network, text = opened(tmp_path / "base", max_length=6), "the film was very good and not bad"
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    expected = tokens(text, truncation=True, max_length=6)["input_ids"]
    assert network.prepare([text])["input_ids"].tolist() == [expected]
    assert len(expected) == 6


def test_tokenizers_that_differ_are_named(tmp_path):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    words = [*WORDS[:-2], WORDS[-1], WORDS[-2]]
    save_text(tmp_path / "expert", "bert", 1, AUTO, words=words)
    network = opened(tmp_path / "base")
    assert "vocabulary differs from the base's in 2 tokens" in " ".join(network.expert(tmp_path / "expert").notes)
    save_text(tmp_path / "same", "bert", 1, AUTO)
    assert not any("vocabulary" in note for note in network.expert(tmp_path / "same").notes)
    key = network.preparation
    network.prepare(TEXTS)
    assert network.preparation == key
    assert opened(tmp_path / "expert").preparation != key
    assert opened(tmp_path / "base", max_length=19).preparation != key


def test_a_configuration_that_differs_is_named(tmp_path):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    save_text(tmp_path / "expert", "bert", 1, AUTO, hidden_act="relu", hidden_dropout_prob=0.3)
    notes = opened(tmp_path / "base").expert(tmp_path / "expert").notes
    assert [note for note in notes if "configuration" in note] == [
        "configuration differs from the base's, which is used: hidden_act"
    ]


def test_vocabularies_of_different_length(tmp_path):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    config = text_config("bert", **THREE)
    config.vocab_size += 3
    expert = shaken(transformers.BertForSequenceClassification(config), 1)
    expert.save_pretrained(tmp_path / "expert")
    with pytest.raises(InputError, match="vocabulary: common"):
        opened(tmp_path / "base").expert(tmp_path / "expert")
    network = opened(tmp_path / "base", vocabulary="common")
    found = network.expert(tmp_path / "expert")
    with torch.no_grad():
        close(
            network.forward(found, NAMES)(found.parameters, network.prepare(TEXTS)),
            expert(**network.prepare(TEXTS)).logits,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 25}, "1 to 24 tokens"),
        ({"max_len": 20}, "take it out"),
        ({"dtype": "float16"}, "dtype"),
        ({"max_length": "20"}, "max_length"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "base", **options)


def test_wrong_files_are_refused(tmp_path):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    network = opened(tmp_path / "base")
    with pytest.raises(InputError, match=r"config\.json"):
        opened(tmp_path / "nothing")
    with pytest.raises(InputError, match="together with its head"):
        network.expert(tmp_path / "base")
    save_text(tmp_path / "gpt2", "gpt2", 0, AUTO)
    with pytest.raises(InputError, match=r"gpt2|architecture"):
        network.expert(tmp_path / "gpt2")
    with pytest.raises(InputError, match="a base that has none"):
        network.forward(None, NAMES)
    save_text(tmp_path / "expert", "bert", 1, AUTO, **THREE)
    expert = network.expert(tmp_path / "expert")
    with pytest.raises(InputError, match="3, one per output"):
        network.forward(expert, ["a", "b"])
    with pytest.raises(InputError, match="order of the expert's own outputs"):
        network.forward(expert, NAMES[::-1])
    with pytest.raises(InputError, match="pairs of texts"):
        network.prepare(["good", 3])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="new or empty folder"):
        network.write(network.parameters, tmp_path / "full", {})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_state_dict_alone_is_an_expert(tmp_path):
    save_text(tmp_path / "base", "bert", 0, "AutoModel")
    model = save_text(tmp_path / "expert", "bert", 1, AUTO, **THREE)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    save_file(dict(reversed(state.items())), tmp_path / "expert.safetensors")
    torch.save({"state_dict": state}, tmp_path / "expert.pt")
    network = opened(tmp_path / "base")
    for name in ("expert.safetensors", "expert.pt"):
        expert = network.expert(tmp_path / name)
        assert "without the prefix 'module.'" in " ".join(expert.notes)
        scores = network.forward(expert, NAMES)(expert.parameters, network.prepare(TEXTS))
        close(scores, library_scores(tmp_path / "expert", TEXTS))
