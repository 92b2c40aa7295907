"""A tokenizer of transformers: texts to token ids, and what it is known by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bounds.types import refuse
from merging.models.libraries import library

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_PROBE = "The naïve CAFÉ on 5th Ave.\tisn't  open; 東京 — https://a.b/c_d?e=1"


@dataclass(frozen=True)
class Tokens:
    """A tokenizer and the folder it came from."""

    tokenizer: Any
    folder: Path

    @property
    def digest(self) -> str:
        """Sha256 of all that decides how a text is read: vocabulary, added tokens and rules."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": self.tokenizer.get_vocab()}
        rules |= {"truncation": None, "padding": None, "special": self.tokenizer.special_tokens_map}
        rules |= {"sides": [self.tokenizer.padding_side, self.tokenizer.truncation_side]}
        return hashlib.sha256(json.dumps(rules, sort_keys=True, default=str).encode()).hexdigest()

    def differences(self, base: Tokens) -> list[str]:
        """Say how this tokenizer reads texts otherwise than the base's."""
        own, other = self.tokenizer.get_vocab(), base.tokenizer.get_vocab()
        if own != other:
            count = sum(own.get(token) != index for token, index in other.items()) + len(own.keys() - other.keys())
            return [f"its vocabulary differs from the base's in {count} tokens; the base's is used"]
        if self.tokenizer(_PROBE)["input_ids"] != base.tokenizer(_PROBE)["input_ids"]:
            return ["its tokenizer reads texts otherwise than the base's, which is used"]
        return []

    def read(self, examples: Sequence[Any], max_length: int) -> dict[str, Tensor]:
        """Return token ids and what belongs to them, [N, max_length] each.

        Raises:
            InputError: examples that are neither all texts nor all pairs of texts.
        """
        pairs = all(isinstance(e, (tuple, list)) and len(e) == 2 for e in examples)
        texts = [list(column) for column in zip(*examples, strict=True)] if pairs else [list(examples)]
        wrong = next((part for column in texts for part in column if not isinstance(part, str)), None)
        if wrong is not None or not len(examples):
            got = "none" if wrong is None else f"{type(wrong).__name__} {wrong!r:.40}"
            refuse("examples", expected="texts, or pairs of texts", got=got, cure="name the columns that hold text")
        found = self.tokenizer(
            *texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
        )
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def read_tokens(folder: Path) -> Tokens | None:
    """Read the tokenizer of a folder; None where it has none. Without a token for padding, the end of a text pads.

    Raises:
        InputError: files that transformers cannot read.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return None
    try:
        tokenizer = library("transformers").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        got = " ".join(str(error).split())[:120]
        refuse(f"tokenizer {folder}", expected="files of a tokenizer", got=got, cure="save it again beside the weights")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Tokens(tokenizer, folder)
