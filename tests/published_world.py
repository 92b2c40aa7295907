"""A hub in miniature: repositories of published suites, of small random models and data, in the hub's layout."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from merging.suites.published import files, find, table
from tests.merging.models.worlds import SMALL, shaken
from tests.merging.models.worlds import tokenizer as text_tokenizer

datasets = pytest.importorskip("datasets")
ROWS = {"train": 48, "validation": 20, "valid": 20, "test": 40, "validation_matched": 40}
SIZES = table.Sizes(train=40, calibration=16, validation=10)


def tokenizer() -> Any:
    """Words of all prompts, so that no two classes have the same tokens."""
    words = {"<pad>": 0, "[UNK]": 1, "<start>": 2, "<end>": 3}
    split = pre_tokenizers.Whitespace()
    for prompt in table.prompts().values():
        for text in (*prompt["classes"], *prompt["templates"]):
            for word, _ in split.pre_tokenize_str(text):
                words.setdefault(word, len(words))
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = split
    special = [("<start>", 2), ("<end>", 3)]
    inner.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="<pad>")


def save_clips(folder: Path, suite: table.PublishedSuite) -> None:
    torch.manual_seed(0)
    tokens = tokenizer()
    text = {"vocab_size": len(tokens), "max_position_embeddings": 40, "eos_token_id": 3, "bos_token_id": 2}
    vision = {"image_size": 16, "patch_size": 8}
    config: Any = transformers.CLIPConfig(
        text_config={**SMALL, **text, "pad_token_id": 0}, vision_config={**SMALL, **vision}, projection_dim=12
    )
    base = shaken(transformers.CLIPModel(config), 0, 0.1)
    place = files.model_folder(folder, suite.base)
    base.save_pretrained(place)
    tokens.save_pretrained(place)
    crop = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop).save_pretrained(place)
    for seed, repository in enumerate(suite.experts.values()):
        expert: Any = transformers.CLIPVisionModel(config.vision_config)
        weights = dict(expert.named_parameters())
        with torch.no_grad():
            for name, value in base.named_parameters():
                own = name if name in weights else name.removeprefix("vision_model.")
                if own in weights and name.startswith("vision_model."):
                    weights[own].copy_(value)
        shaken(expert, seed + 1, 0.05).save_pretrained(files.model_folder(folder, repository))


def pictures(count: int, seed: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (18, 20, 3), dtype=np.uint8)) for _ in range(count)]


def image_table(task: str, count: int, seed: int) -> Any:
    """Labels count the classes; the data calls them otherwise, in part by the published names of other classes."""
    classes = list(table.prompts()[task]["classes"])
    label = datasets.Value("bool") if task == "pcam" else datasets.ClassLabel(names=[*classes[1:], "of its own"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = {"image": pictures(count, seed), "label": [i % len(classes) for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def save_images(folder: Path, task: str, data: table.DataSet, seed: int) -> None:
    place = files.data_folder(folder, data.repository)
    tables = {split: image_table(task, ROWS[split], 10 * seed + i) for i, split in enumerate(data.splits)}
    if task == "mnist":
        datasets.DatasetDict(tables).save_to_disk(place)
        return
    for split, rows in tables.items():
        if task == "fer2013":
            _save_tar(place / split / "0.tar", rows)
            continue
        parts = 2 if task == "dtd" else 1
        for part in range(parts):
            name = f"{split}-{part:05d}-of-{parts:05d}.parquet"
            shard = rows.shard(parts, part, contiguous=True)
            (place / (data.config or "data")).mkdir(parents=True, exist_ok=True)
            shard.to_parquet(place / (data.config or "data") / name)
    if data.config:
        (place / "README.md").write_text(card({data.config: (data.config, data.splits)}))


def _save_tar(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
            content = io.BytesIO()
            image.save(content, "JPEG")
            for suffix, data in (("jpg", content.getvalue()), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"s{index:07d}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def card(configs: dict[str, tuple[str, tuple[str, ...]]]) -> str:
    """A card as the hub's data sets have one."""
    lines = ["---", "configs:"]
    for name, (place, splits) in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {place}/{split}-*"]
    return "\n".join([*lines, "---", ""])


def save_clip_suite(folder: Path, name: str) -> Path:
    """Make all repositories of a suite of CLIPs."""
    suite = find(name)
    save_clips(folder, suite)
    for seed, (task, data) in enumerate(suite.data.items()):
        save_images(folder, task, data, seed)
    return folder


def save_glue(folder: Path) -> Path:
    """Make all repositories of the suite of GPT-2s."""
    suite = find("gpt2-glue7")
    _save_gpt2(files.model_folder(folder, suite.base), 0, "GPT2Model")
    place = files.data_folder(folder, "nyu-mll/glue")
    for seed, (task, repository) in enumerate(suite.experts.items()):
        data, count = suite.data[task], 3 if task == "mnli" else 2
        target = files.model_folder(folder, repository)
        _save_gpt2(target, seed + 1, "GPT2ForSequenceClassification", num_labels=count, pad_token_id=3)
        columns = [data.columns["text"]] if isinstance(data.columns["text"], str) else list(data.columns["text"])
        for index, split in enumerate(data.splits):
            rows = _texts(columns, ROWS[split], count, 10 * seed + index)
            (place / task).mkdir(parents=True, exist_ok=True)
            rows.to_parquet(place / task / f"{split}-00000-of-00001.parquet")
    (place / "README.md").write_text(card({task: (task, suite.data[task].splits) for task in suite.data}))
    return folder


def _save_gpt2(folder: Path, seed: int, kind: str, **keywords: Any) -> None:
    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(13))]
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "vocab_size": len(words)}
    config: Any = transformers.GPT2Config(**small, bos_token_id=3, eos_token_id=3, **keywords)
    shaken(getattr(transformers, kind)(config), seed).save_pretrained(folder)
    text_tokenizer(words, pad=None, eos_token="[SEP]").save_pretrained(folder)


def _texts(columns: list[str], count: int, classes: int, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    label = datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])
    features = datasets.Features({**{c: datasets.Value("string") for c in columns}, "label": label})
    rows: dict[str, list[Any]] = {
        c: [" ".join(f"w{i}" for i in generator.integers(0, 13, 14)) for _ in range(count)] for c in columns
    }
    return datasets.Dataset.from_dict({**rows, "label": [i % classes for i in range(count)]}, features=features)


def use(monkeypatch: Any, hub: Path, caches: Path) -> None:
    """Let published suites be found in ``hub``, with small splits, and keep every cache in ``caches``."""
    monkeypatch.setenv("MERGEBOUND_HUB", str(hub))
    monkeypatch.setenv("MERGEBOUND_CACHE", str(caches / "prepared"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(caches / "datasets"))
    monkeypatch.setattr(files, "SIZES", SIZES)
    datasets.disable_progress_bars()
