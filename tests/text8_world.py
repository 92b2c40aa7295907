"""A MiniLM of random weights and texts of made-up words: what builds suite text8 in seconds."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import torch

from merging.checkpoints import sha256
from merging.suites.text8.build import Settings
from merging.suites.text8.tasks import TextTask
from merging.suites.text8.texts import Sizes
from merging.suites.text8.training import Training

WORDS = {"colour": (("red", "blue"), 3), "animal": (("cat", "dog", "hen"), 5)}
"""Task -> the words that tell its classes, and the seed of its texts."""
FILLER = [f"word{i}" for i in range(30)]
TASKS = {name: TextTask(class_names=words, licence="none", origin="made up") for name, (words, _) in WORDS.items()}
CONFIG: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}


def bert(vocabulary: int = 60, length: int = 16):
    """Return a BertModel of random weights: small embeddings, so that a wrong epsilon shows, and strong layers."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocabulary, max_position_embeddings=length, layer_norm_eps=1e-12, **CONFIG
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for name, value in model.named_parameters():
        if "embeddings" not in name:
            torch.nn.init.normal_(value, std=0.3)
    return model


def write_model(folder: Path) -> Path:
    """Write model.safetensors, config.json and tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir()
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *(word for words, _ in WORDS.values() for word in words)]
    tokenizer = Tokenizer(models.WordLevel({word: 7 + i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    bert().save_pretrained(folder)
    return folder


def write_texts(folder: Path) -> Path:
    """Write 90 texts of train and 60 of test for each task."""
    folder.mkdir()
    for name, (words, seed) in WORDS.items():
        draw, lines = random.Random(seed), []
        for i in range(150):
            label = i % len(words)
            text = " ".join([*draw.sample(FILLER, 4), words[label]])
            row = {"split": "train" if i < 90 else "test", "label": label, "label_name": words[label], "text": text}
            lines.append(json.dumps(row))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


def settings(folder: Path, **others) -> Settings:
    """Settings of a build in a folder; its model and texts are made where they are missing."""
    model, texts = folder / "model", folder / "sources"
    if not model.exists():
        write_model(model)
        write_texts(texts)
    chosen = {
        "source": texts,
        "weights": model,
        "weights_sha256": sha256(model / "model.safetensors"),
        "out": folder / "out",
        "work": folder / "work",
        "sizes": Sizes(train=60, calibration=12, validation=15, test=40),
        "length": 8,
        "training": Training(epochs=2, batch=8, rate=3e-3),
        "rank": 4,
    }
    return Settings(**{**chosen, **others})
