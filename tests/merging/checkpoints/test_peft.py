"""Adapters: the expert is what PEFT's own merge_and_unload gives."""

import json
import shutil
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from bounds.types import InputError
from merging.checkpoints import is_adapter, read_adapter, read_weights, weight_files

SETTINGS: Any = dict(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3,
    max_position_embeddings=12,
)  # fmt: skip
BERT = BertConfig(**SETTINGS)
GPT2_SETTINGS: Any = dict(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12, num_labels=3, pad_token_id=0)
GPT2 = GPT2Config(**GPT2_SETTINGS)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:::peft"),
]
"""What the libraries say about themselves."""


ENCODERS = ["one rank", "patterns", "embedding", "all biases and a head", "whole modules", "gpt2"]


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(54, 4))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x)[0]


def trained(model: Any, folder, **config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Save an adapter whose tensors are random; return θ_0 and the merged model's parameters, both by name."""
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(**config))
    for name, value in wrapped.named_parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape) * (0.3 if "lora" in name else 0.1)
    wrapped.save_pretrained(folder)
    merged = wrapped.merge_and_unload()
    return base, {name: value.detach().clone() for name, value in merged.named_parameters()}


def agree(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-6, name


CASES = {
    "one rank": (lambda: BertForSequenceClassification(BERT), {"r": 3, "target_modules": ["query", "value"]}),
    "rslora": (
        lambda: BertForSequenceClassification(BERT),
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["query", "dense"]},
    ),
    "patterns": (
        lambda: BertForSequenceClassification(BERT),
        {
            "r": 2,
            "lora_alpha": 5,
            "target_modules": ["query", "value", "dense"],
            "rank_pattern": {"query": 5, "layer.1.attention.self.value": 3},
            "alpha_pattern": {r"layer.\d.intermediate.dense": 11, "query": 1},
        },
    ),
    "embedding": (
        lambda: BertForSequenceClassification(BERT),
        {"r": 3, "target_modules": ["word_embeddings", "key"]},
    ),
    "biases of its layers": (
        lambda: BertForSequenceClassification(BERT),
        {"r": 3, "target_modules": ["query"], "bias": "lora_only"},
    ),
    "all biases and a head": (
        lambda: BertForSequenceClassification(BERT),
        {"r": 3, "target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"},
    ),
    "whole modules": (
        lambda: BertForSequenceClassification(BERT),
        {"r": 3, "target_modules": ["query"], "modules_to_save": ["pooler.dense", "classifier"]},
    ),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(GPT2),
        {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    "gpt2, told late": (
        lambda: GPT2ForSequenceClassification(GPT2),
        {"r": 3, "target_modules": ["c_attn", "attn.c_proj"], "task_type": "SEQ_CLS"},
    ),
    "convolutions": (conv, {"r": 2, "target_modules": ["0", "2", "4"], "rank_pattern": {"0": 3}}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_expert_is_that_of_merge_and_unload(name, tmp_path):
    make, config = CASES[name]
    base, merged = trained(make(), tmp_path, **config)
    adapter = read_adapter(tmp_path)
    found = adapter.apply(base)
    agree(found, merged)
    assert list(found) == list(base)
    changed = {n for n in base if not torch.equal(base[n], merged[n])}
    assert changed
    assert set(adapter.saved) <= set(base)
    assert all(found[n] is base[n] for n in base if n not in changed and n not in adapter.saved)


@pytest.mark.parametrize(
    "name", ["one rank", "patterns", "embedding", "all biases and a head", "whole modules", "gpt2"]
)
def test_names_fit_the_bare_encoder_and_heads_are_handed_out(name, tmp_path):
    make, config = CASES[name]
    base, merged = trained(make(), tmp_path, **config)
    start = "transformer." if name == "gpt2" else "bert."
    bare = {n.removeprefix(start): v for n, v in base.items() if n.startswith(start)}
    adapter = read_adapter(tmp_path)
    agree(adapter.apply(bare), {n.removeprefix(start): v for n, v in merged.items() if n.startswith(start)})
    agree(adapter.apply({f"model.{n}": v for n, v in base.items()}), {f"model.{n}": v for n, v in merged.items()})
    if "head" in name or name == "whole modules":
        assert torch.equal(adapter.saved["classifier.weight"], merged["classifier.weight"])
        assert torch.equal(adapter.saved["classifier.bias"], merged["classifier.bias"])


def test_a_bare_encoder_s_adapter_fits_a_classifier(tmp_path):
    whole = BertForSequenceClassification(BERT)
    base = {name: value.detach().clone() for name, value in whole.named_parameters()}
    _, merged = trained(whole.bert, tmp_path, r=3, target_modules=["query", "value"])
    found = read_adapter(tmp_path).apply(base)
    agree({n: found[f"bert.{n}"] for n in merged}, merged)
    assert found["classifier.weight"] is base["classifier.weight"]


def test_precision(tmp_path):
    base, merged = trained(CASES["one rank"][0](), tmp_path, **CASES["one rank"][1])
    adapter = read_adapter(tmp_path)
    half = adapter.apply({name: value.bfloat16() for name, value in base.items()})
    assert {value.dtype for value in half.values()} == {torch.float32}
    double = adapter.apply({name: value.double() for name, value in base.items()})
    agree(double, merged)
    name = "bert.encoder.layer.0.attention.self.query"
    up, down = adapter.modules[name].up.double(), adapter.modules[name].down.double()
    assert torch.equal(double[f"{name}.weight"], base[f"{name}.weight"].double() + up @ down * (8 / 3))


def test_files_notes_and_folders(tmp_path):
    model = CASES["patterns"][0]()
    model.config._name_or_path = "some/base"
    base, merged = trained(model, tmp_path, **CASES["patterns"][1])
    assert is_adapter(tmp_path)
    assert is_adapter(tmp_path / "adapter_config.json")
    assert not is_adapter(tmp_path / "adapter_model.safetensors")
    assert [p.name for p in weight_files(tmp_path)] == ["adapter_config.json", "adapter_model.safetensors"]
    adapter = read_adapter(tmp_path / "adapter_config.json")
    agree(adapter.apply(base), merged)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "some/base"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_adapter(tmp_path).notes == ("LoRA adapter, ranks 2, 3, 5, on 11 modules, trained on some/base",)
    with pytest.raises(InputError, match=r"got a PEFT adapter; read_adapter"):
        read_weights(tmp_path)
    torch.save(read_weights(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    agree(read_adapter(tmp_path).apply(base), merged)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match="got neither; copy the adapter again"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "got"),
    [
        (peft.LoraConfig(r=2, target_modules=["query"], use_dora=True), "use_dora"),
        (peft.LoraConfig(r=2, target_modules=["query"], lora_bias=True), "lora_bias"),
        (peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="pissa"), "init_lora_weights=pissa"),
        (peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="olora"), "init_lora_weights=olora"),
        (peft.IA3Config(target_modules=["query"], feedforward_modules=[]), "IA3"),
        (peft.LoHaConfig(r=2, target_modules=["query"]), "LOHA"),
        (peft.LoKrConfig(r=2, target_modules=["query"]), "LOKR"),
        (peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=peft.TaskType.SEQ_CLS), "PREFIX_TUNING"),
        (peft.LoraConfig(r=2, target_modules=["query"], trainable_token_indices=[1]), "trainable_token_indices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_adapters_are_refused(config, got, tmp_path):
    model: Any = BertForSequenceClassification(BERT)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"got {got}.*; save the expert after merge_and_unload\(\)"):
        read_adapter(tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    base, _ = trained(CASES["one rank"][0](), tmp_path, **CASES["one rank"][1])
    adapter = read_adapter(tmp_path)
    less = {name: value for name, value in base.items() if "layer.1.attention.self.value.weight" not in name}
    with pytest.raises(InputError, match=r"no tensor of the base for its module bert\.encoder\.layer\.1.*value"):
        adapter.apply(less)
    name = "bert.encoder.layer.1.attention.self.value.weight"
    with pytest.raises(InputError, match=r"expected shape \[5, 16\]; got a product of shape \[16, 16\]"):
        adapter.apply(base | {name: torch.zeros(5, 16)})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for key, value in (("lora_alpha", None), ("alpha_pattern", {"(": 1}), ("alpha_pattern", [1])):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match="lora_alpha and alpha_pattern"):
            read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="expected a JSON object"):
        read_adapter(tmp_path)
    with pytest.raises(InputError, match=r"expected a folder with adapter_config\.json"):
        read_adapter(tmp_path / "nothing")


def test_multi_head_attention_is_refused(tmp_path):
    """PEFT adds the product of its output twice, in its own forward too: the expert is not θ_0 + BA."""
    base, merged = trained(Attention(), tmp_path, r=2, target_modules=["attn"])
    adapter = read_adapter(tmp_path)
    delta = adapter.modules["attn.out_proj"].product(torch.float32)
    assert torch.allclose(merged["attn.out_proj.weight"], base["attn.out_proj.weight"] + 2 * delta, atol=1e-5)
    with pytest.raises(InputError, match=r"no tensor of the base for its module attn; save the expert after merge_and"):
        adapter.apply(base)


def test_a_head_of_another_number_of_classes_in_the_base(tmp_path):
    base, _ = trained(CASES["whole modules"][0](), tmp_path, **CASES["whole modules"][1])
    base["classifier.weight"] = torch.zeros(5, 16)
    with pytest.raises(InputError, match=r"classifier\.weight: expected shape \[5, 16\]; got \[3, 16\]; leave"):
        read_adapter(tmp_path).apply(base)


def test_squares_beside_both_orientations(tmp_path):
    base, merged = trained(CASES["gpt2"][0](), tmp_path, r=2, target_modules=["c_attn", "score"])
    agree(read_adapter(tmp_path).apply(base), merged)  # every shape tells
    shutil.rmtree(tmp_path)
    base, _ = trained(CASES["gpt2"][0](), tmp_path, r=2, target_modules=["c_attn", "score", "c_proj"])
    with pytest.raises(InputError, match="is square, and other modules are of both kinds"):
        read_adapter(tmp_path).apply(base)
