"""Small random models and tokenizers, saved in the formats of their libraries."""

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "was", "bad", "good", "very", "not", "a", "plot", "and"]
WORDS += ["acting", "boring", "fine"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = ["the film was very good", "bad", "a boring plot and bad acting was not fine", "good plot unknownword"]
PAIRS = [("the film was good", "bad plot"), ("fine", "very boring acting"), ("not bad", "good")]


def tokenizer(words=WORDS, pad: str | None = "[PAD]", **keywords) -> Any:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if "[CLS]" in words:
        special = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    names = {"unk_token": "[UNK]", **({"pad_token": pad} if pad else {})}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names, **keywords)


def text_config(kind, **keywords) -> Any:
    vocabulary = {"vocab_size": len(WORDS), "max_position_embeddings": 24}
    if kind == "distilbert":
        small = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        return transformers.DistilBertConfig(**small, **vocabulary, **keywords)
    if kind == "gpt2":
        small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": len(WORDS)}
        ends = {"bos_token_id": 3, "eos_token_id": 3}
        return transformers.GPT2Config(**small, **ends, **keywords)
    known = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[kind]
    return known(**SMALL, **vocabulary, **({"pad_token_id": 0} if kind == "roberta" else {}), **keywords)


def shaken(model, seed, amount=0.3):
    """Move every float parameter and buffer, so that fresh zeros and ones are told from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(amount * torch.randn(value.shape, generator=generator))
        for name, value in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
    return model.eval()


def save_text(folder, kind, seed, auto, words=WORDS, **keywords) -> Any:
    """Save a model of transformers with its tokenizer; ``auto`` names the class."""
    torch.manual_seed(seed)
    config = text_config(kind, **keywords)
    model = shaken(getattr(transformers, auto).from_config(config), seed)
    model.save_pretrained(folder)
    tokenizer(words, pad=None if kind == "gpt2" else "[PAD]", eos_token="[SEP]").save_pretrained(folder)
    return model


CLIP_WORDS = ["<pad>", "[UNK]", "<start>", "<end>", "a", "photo", "of", "cat", "dog", "car", ".", "drawing", "the"]
CLASSES = ["cat", "dog", "car"]
TEMPLATES = ["a photo of a {}.", "drawing of the {}"]


def clip_config(**vision) -> Any:
    text = {"vocab_size": len(CLIP_WORDS), "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
    image = {"image_size": 16, "patch_size": 8, **vision}
    return transformers.CLIPConfig(
        text_config={**SMALL, **text, "pad_token_id": 0}, vision_config={**SMALL, **image}, projection_dim=12
    )


def clip_tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(CLIP_WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<start>", 2), ("<end>", 3)]
    inner.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    names = {"unk_token": "[UNK]", "pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def clip_processor() -> Any:
    crop = {"height": 16, "width": 16}
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop)


def save_clip(folder, seed, auto="CLIPModel", extras=True, config=None, amount=0.1) -> Any:
    """Save a CLIP of transformers, or its vision tower, with tokenizer and preprocessing."""
    torch.manual_seed(seed)
    config = config or clip_config()
    kind = getattr(transformers, auto)
    model = shaken(kind(config if auto == "CLIPModel" else config.vision_config), seed, amount)
    model.save_pretrained(folder)
    if extras:
        clip_processor().save_pretrained(folder)
        clip_tokenizer().save_pretrained(folder)
    return model


def pictures(count=5, seed=0) -> list[Any]:
    """Random images of several sizes."""
    generator = np.random.default_rng(seed)
    sizes = [(20, 31), (16, 16), (40, 17), (9, 12), (33, 33)][:count]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def followed(network, folder, monkeypatch, task, per_task=True, **known) -> dict[str, Any]:
    """Run a model card's recipe in the folder that was written; return its names."""
    monkeypatch.chdir(folder)
    exec(network.recipe(task, per_task=per_task), known)
    return known
