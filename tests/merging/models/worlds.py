"""Small random models and tokenizers, saved in the formats of their libraries."""

from typing import Any

import torch
import transformers
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
                value.add_(torch.rand(value.shape, generator=generator))
    return model.eval()


def save_text(folder, kind, seed, auto, words=WORDS, **keywords) -> Any:
    """Save a model of transformers with its tokenizer; ``auto`` names the class."""
    torch.manual_seed(seed)
    config = text_config(kind, **keywords)
    model = shaken(getattr(transformers, auto).from_config(config), seed)
    model.save_pretrained(folder)
    tokenizer(words, pad=None if kind == "gpt2" else "[PAD]", eos_token="[SEP]").save_pretrained(folder)
    return model
