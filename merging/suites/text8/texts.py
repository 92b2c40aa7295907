"""Texts of a task: reading them, choosing the four splits, token ids."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bounds.types import refuse
from merging.draws import task_generators
from merging.files import encoded
from merging.models.libraries import library
from merging.task import SPLITS

Row = Mapping[str, Any]
"""A line of a file of texts: ``split``, ``label``, ``label_name`` and ``text``; calibration has no label."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Tokens that the suite's vocabulary begins with: padding is its token 0."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Examples of each split, at most."""

    train: int = 1600
    """S_t: what the expert is fine-tuned on, from the source's train part."""
    calibration: int = 200
    """Examples without labels, from the source's train part; a fifth of it at most."""
    validation: int = 250
    """From the source's test part; a third of it at most."""
    test: int = 1000
    """From the source's test part."""


class Tokens:
    """A tokenizer file, for texts of at most ``length`` tokens."""

    def __init__(self, file: Path, length: int) -> None:
        self.tokenizer = library("tokenizers").Tokenizer.from_file(str(file))
        self.special = [self.tokenizer.token_to_id(token) for token in SPECIAL]
        if None in self.special:
            refuse(f"tokenizer {file}", expected=" ".join(SPECIAL), got="not all of them", cure="use BERT's tokenizer")
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(pad_id=self.special[0], length=length)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Return the tokenizer's ids [N, L] of texts."""
        return np.array([found.ids for found in self.tokenizer.encode_batch(list(texts))])


def read_rows(path: Path, classes: int) -> list[Row]:
    """Read a file of texts, one JSON object a line, gzipped.

    Raises:
        InputError: no such file, or lines that are not :data:`Row` with labels below ``classes``.
    """
    if not path.is_file():
        refuse(f"texts {path}", expected="a file .jsonl.gz", got="nothing there", cure="name its folder with --source")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows: list[Row] = [json.loads(line) for line in file]
        bad = next((i for i, row in enumerate(rows) if not _is_row(row, classes)), None)
    except (OSError, EOFError, ValueError, AttributeError) as error:
        refuse(f"texts {path}", expected="gzipped lines of JSON", got=error, cure="get the file again")
    if bad is not None:
        expected = f"text, and label 0 to {classes - 1} except in calibration"
        refuse(f"texts {path}, line {bad + 1}", expected=expected, got=f"{rows[bad]}"[:80], cure="correct it")
    return rows


def _is_row(row: Row, classes: int) -> bool:
    labelled = row.get("label") in range(classes)
    return isinstance(row.get("text"), str) and row.get("split") in SPLITS and labelled != _unlabelled(row)


def _unlabelled(row: Row) -> bool:
    return row.get("split") == "calibration"


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a file of texts: equal rows give equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(encoded(text), compresslevel=9, mtime=0))


def choose(name: str, rows: Sequence[Row], ids: np.ndarray, sizes: Sizes, seed: int) -> list[Row]:
    """Return the rows of the four splits: no two rows have the same token ids.

    Rows that have splits of their own (one of them ``calibration``) keep them and their order; others are drawn.

    Args:
        name: of the task; with the seed it says what is drawn.
        rows: of the source.
        ids: their token ids [N, L].
        sizes: of the splits.
        seed: of the choice.
    """
    parts = _distinct(rows, ids)
    if parts["calibration"]:
        return [rows[i] for split in SPLITS for i in parts[split]]
    (generator,) = task_generators([f"{name} splits"], seed)
    seen, unseen = (_shuffled(parts[split], generator) for split in ("train", "test"))
    calibration, validation = min(sizes.calibration, len(seen) // 5), min(sizes.validation, len(unseen) // 3)
    chosen = {
        "train": seen[calibration:][: sizes.train],
        "calibration": seen[:calibration],
        "validation": unseen[:validation],
        "test": unseen[validation:][: sizes.test],
    }
    return [_in_split(rows[i], split) for split in SPLITS for i in chosen[split]]


def _distinct(rows: Sequence[Row], ids: np.ndarray) -> dict[str, list[int]]:
    """Return split -> its rows, without those whose ids are another's: what test has, train has not."""
    parts: dict[str, list[int]] = {split: [] for split in reversed(SPLITS)}
    seen: set[bytes] = set()
    for split, own in parts.items():
        for i, row in enumerate(rows):
            if row["split"] == split and (key := ids[i].tobytes()) not in seen:
                seen.add(key)
                own.append(i)
    return parts


def _shuffled(rows: Sequence[int], generator: torch.Generator) -> list[int]:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def _in_split(row: Row, split: str) -> Row:
    kept = ("text",) if split == "calibration" else ("label", "label_name", "text")
    return {"split": split} | {key: row[key] for key in kept if key in row}


def vocabulary(special: Sequence[int], ids: Sequence[np.ndarray]) -> np.ndarray:
    """Return the tokenizer's ids [W] that are in use, those of ``special`` first: the suite's id is the place."""
    used = np.setdiff1d(np.concatenate([part.ravel() for part in ids]), special)
    return np.concatenate([np.asarray(special), used])


def write_examples(rows: Sequence[Row], ids: np.ndarray, names: np.ndarray, words: np.ndarray, path: Path) -> None:
    """Write what :func:`merging.suites.text8.loading.read_examples` reads.

    Args:
        rows: of the four splits.
        ids: the tokenizer's ids [N, L] of their texts.
        names: the tokenizer's ids [C, L] of the names of the classes.
        words: the tokenizer's id of each of the suite's.
        path: of the file.
    """
    place = np.zeros(words.max() + 1, dtype=np.min_scalar_type(len(words)))
    place[words] = np.arange(len(words))
    arrays: dict[str, Any] = {"names": place[names]}
    for split in SPLITS:
        own = [i for i, row in enumerate(rows) if row["split"] == split]
        arrays[f"{split}_ids"] = place[ids[own]]
        if split != "calibration":
            arrays[f"{split}_labels"] = np.array([rows[i]["label"] for i in own], dtype=np.uint8)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
