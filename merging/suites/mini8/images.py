"""Images of suite ``mini8``: sources checked, split, captioned."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bounds.types import refuse
from merging.checkpoints import sha256
from merging.suites.mini8.glyphs import draw
from merging.suites.mini8.sources import Source

Split = tuple[np.ndarray, np.ndarray]
"""Images (uint8) and labels (int64)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a task's images are divided."""

    pretrain_share: float = 0.5
    """Share of each task's source training images, calibration apart, that θ_0 is trained on instead of the expert."""
    held_apart: int = 200
    """Calibration images of each task, and as many for validation, at most."""
    test_images: int = 1000
    """Test images of each task, at most."""


@dataclass(frozen=True)
class Captioned:
    """Images of the pretraining with the captions of each: index of its group, and the groups' texts."""

    images: np.ndarray
    groups: np.ndarray
    texts: tuple[tuple[str, ...], ...]


def read(source: Source, folder: Path) -> dict[str, np.ndarray]:
    """Read a source file.

    Raises:
        InputError: it is missing, or another file.
    """
    path = folder / f"{source.file}.npz"
    if not path.is_file() or sha256(path) != source.sha256:
        got = "another file" if path.is_file() else "nothing there"
        expected = f"sha256 {source.sha256[:12]}…"
        refuse(f"source {path}", expected=expected, got=got, cure="see NOTICE for its origin")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}


def split(source: Source, name: str, folder: Path, sizes: Sizes, seed: int) -> dict[str, Split]:
    """Split a task's images class by class: pretrain, calibration, train; validation, test.

    Calibration, pretrain and train come from the source's training part, validation and test both from its test part.
    An image that a source holds twice stays in one place: the first of test, validation, calibration, train, pretrain.
    """
    data = read(source, folder)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    parts: dict[str, list[np.ndarray]] = {
        part: [] for part in ("test", "validation", "calibration", "train", "pretrain")
    }
    classes = len(source.class_names)
    for label in range(classes):
        index = random.permutation(np.flatnonzero(data["y_train"] == label))
        apart = min(sizes.held_apart // classes, len(index) // 8)
        pretrained = apart + round(sizes.pretrain_share * (len(index) - apart))
        for part, chosen in zip(
            ("calibration", "pretrain", "train"), np.split(index, [apart, pretrained]), strict=True
        ):
            parts[part].append(chosen)
        index = random.permutation(np.flatnonzero(data["y_test"] == label))
        apart = min(sizes.held_apart // classes, len(index) // 3)
        parts["validation"].append(index[:apart])
        parts["test"].append(index[apart : apart + sizes.test_images // classes])
    seen: set[bytes] = set()
    return {part: _first_seen(data, part, random.permutation(np.concatenate(i)), seen) for part, i in parts.items()}


def _first_seen(data: Mapping[str, np.ndarray], part: str, index: np.ndarray, seen: set[bytes]) -> Split:
    """Return a part without the images that were seen before, and remember its own."""
    side = "test" if part in ("test", "validation") else "train"
    images, labels = data[f"x_{side}"][index], data[f"y_{side}"][index].astype(np.int64)
    new = [k for k, image in enumerate(images) if not (image.tobytes() in seen or seen.add(image.tobytes()))]
    return images[new], labels[new]


def captioned(
    tasks: Mapping[str, Source], splits: Mapping[str, Mapping[str, Split]], named_share: float, seed: int
) -> list[Captioned]:
    """Return the tasks' pretrain parts with their captions.

    Args:
        tasks: name -> source.
        splits: of every task.
        named_share: share of a class's images that are captioned by its name; the others are in other words.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    return [_of_task(source, *splits[name]["pretrain"], named_share, random) for name, source in tasks.items()]


def in_no_task(sources: Mapping[str, Source], folder: Path, glyphs: int, seed: int) -> list[Captioned]:
    """Return what is in no task: whole sources, and drawn characters with their Unicode names as captions.

    Args:
        sources: name -> source.
        folder: of the source files.
        glyphs: number of drawn characters.
        seed: of the drawing.
    """
    sets = []
    for source in sources.values():
        data = read(source, folder)
        images = np.concatenate([data["x_train"], data["x_test"]])
        labels = np.concatenate([data["y_train"], data["y_test"]]).astype(np.int64)
        sets.append(Captioned(images, labels, tuple(map(source.captions, range(len(source.class_names))))))
    images, names = draw(glyphs, seed)
    known = {name: index for index, name in enumerate(sorted(set(names)))}
    texts = tuple((name, f"the character {name}") for name in known)
    return [*sets, Captioned(images, np.array([known[name] for name in names]), texts)]


def _of_task(
    source: Source, images: np.ndarray, labels: np.ndarray, named_share: float, random: np.random.Generator
) -> Captioned:
    classes = len(source.class_names)
    groups = labels + classes
    for label in range(classes):
        index = random.permutation(np.flatnonzero(labels == label))
        groups[index[: max(1, round(named_share * len(index)))]] = label
    texts = [source.captions(label) for label in range(classes)]
    return Captioned(images, groups, (*texts, *(source.other_captions(label) for label in range(classes))))
