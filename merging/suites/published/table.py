"""Published suites as data: which repositories of the hub hold base, experts and data, and what each split is.

Experts and data are those of FusionBench (Tang et al. 2024, arXiv 2406.03280); class names and prompts
(``prompts.json``) are those its experts were fine-tuned with, most of them from CLIP's own (arXiv 2103.00020). Labels
are taken by number: class k of a data set is the k-th name of the list, whatever the data set calls it.

What each split is:

- train: the data set's own, which the experts were fine-tuned on; at most ``SIZES.train`` rows of it, drawn by a seed.
- calibration: ``SIZES.calibration`` of those, without labels. The published code takes its images from the test split
  instead. Only oxford_flowers102 has too few training images (1020): there they come from the test split, too.
- validation: the data set's own where there is one, else a share of the test split: an expert has seen its training
  split, and a certificate rests on examples that nothing has seen.
- test: the published one, less what was cut from it. GLUE's has no labels; its validation split stands in, as usual.

Assumed, and not verified against the hub: names of columns and splits that its pages do not show (image and label are
what the published code reads), and that labels count classes in the order of the published names. ``mergebound suite
check`` compares every expert with the pretrained model, which shows where that is wrong. Another family of the same
experts (TALL-masks, TSV) is other weights with other numbers: do not mix them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bounds.types import meant, refuse


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of the hub: its repository and configuration, splits, columns, and where calibration is cut from."""

    repository: str
    config: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    columns: Mapping[str, Any] = field(default_factory=dict)
    calibration: str = "train"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are read, by the data set's own names."""
        return tuple(split for split in (self.train, self.validation, self.test) if split)


@dataclass(frozen=True, kw_only=True)
class PublishedSuite:
    """A published suite for one base model; ``name`` finds it, ``data`` and ``experts`` are by task."""

    name: str
    kind: str
    base: str
    experts: Mapping[str, str]
    data: Mapping[str, DataSet]
    options: Mapping[str, Any] = field(default_factory=dict)
    validation: float = 0.1
    """Share of the test split that is cut for validation, where the data set has none."""

    @property
    def file(self) -> str:
        """Name of its suite file."""
        return f"{self.name.replace(':', '-')}.yaml"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Examples of a task: what is drawn of its training split, calibration included; and of its own validation one."""

    train: int = 5600
    calibration: int = 1600
    validation: int = 2000


SIZES = Sizes()

_MODELS: Mapping[str, str] = {
    "ViT-B-32": "clip-vit-base-patch32",
    "ViT-B-16": "clip-vit-base-patch16",
    "ViT-L-14": "clip-vit-large-patch14",
}
_IMAGES: Mapping[str, DataSet] = {
    "sun397": DataSet(repository="tanganke/sun397"),
    "stanford-cars": DataSet(repository="tanganke/stanford_cars"),
    "resisc45": DataSet(repository="tanganke/resisc45"),
    "eurosat": DataSet(repository="tanganke/eurosat"),
    "svhn": DataSet(repository="ufldl-stanford/svhn", config="cropped_digits"),
    "gtsrb": DataSet(repository="tanganke/gtsrb"),
    "mnist": DataSet(repository="ylecun/mnist"),
    "dtd": DataSet(repository="tanganke/dtd"),
    "oxford_flowers102": DataSet(
        repository="dpdl-benchmark/oxford_flowers102", validation="validation", calibration="test"
    ),
    "pcam": DataSet(repository="1aurent/PatchCamelyon", validation="valid"),
    "fer2013": DataSet(repository="clip-benchmark/wds_fer2013", columns={"image": "jpg", "label": "cls"}),
    "oxford-iiit-pet": DataSet(repository="timm/oxford-iiit-pet"),
    "stl10": DataSet(repository="tanganke/stl10"),
    "cifar100": DataSet(repository="tanganke/cifar100"),
    "cifar10": DataSet(repository="tanganke/cifar10"),
    "food101": DataSet(repository="ethz/food101", test="validation"),
    "fashion_mnist": DataSet(repository="zalando-datasets/fashion_mnist"),
    "emnist_letters": DataSet(repository="tanganke/emnist_letters"),
    "kmnist": DataSet(repository="tanganke/kmnist"),
    "rendered-sst2": DataSet(repository="nateraw/rendered-sst2", validation="validation"),
}
_GLUE: Mapping[str, DataSet] = {
    task: DataSet(repository="nyu-mll/glue", config=task, test=test, columns={"text": text})
    for task, test, text in (
        ("cola", "validation", "sentence"),
        ("mnli", "validation_matched", ["premise", "hypothesis"]),
        ("mrpc", "validation", ["sentence1", "sentence2"]),
        ("qnli", "validation", ["question", "sentence"]),
        ("qqp", "validation", ["question1", "question2"]),
        ("rte", "validation", ["sentence1", "sentence2"]),
        ("sst2", "validation", "sentence"),
    )
}
_COUNTS: Mapping[str, int] = {"clip-ta8": 8, "clip-tall14": 14, "clip-tall20": 20}
"""Suite -> how many tasks of ``_IMAGES`` it has: each of them contains the smaller ones."""
GLUE = "gpt2-glue7"
NAMES: Mapping[str, Sequence[str]] = {**{name: tuple(_MODELS) for name in _COUNTS}, GLUE: ("gpt2",)}
"""Suite -> its base models, the default first."""


def is_published(text: str) -> bool:
    """Whether a text names a published suite, as ``clip-ta8`` or ``clip-ta8:ViT-L-14`` does."""
    return text.partition(":")[0] in NAMES


def find(text: str) -> PublishedSuite:
    """Return the suite that a text names, ``SUITE`` (its first base model) or ``SUITE:MODEL``.

    Raises:
        InputError: an unknown suite, or a base model that it does not have.
    """
    name, colon, model = text.partition(":")
    if name not in NAMES:
        refuse("published suite", expected=" or ".join(NAMES), got=repr(name), cure=meant(name, NAMES))
    if colon and model not in NAMES[name]:
        refuse(f"model of {name}", expected=" or ".join(NAMES[name]), got=repr(model), cure=meant(model, NAMES[name]))
    if name == GLUE:
        experts = {task: f"tanganke/gpt2_{task}" for task in _GLUE}
        options, base = {"max_length": 512}, "openai-community/gpt2"
        whole = f"{name}:gpt2"
        return PublishedSuite(
            name=whole, kind="hf_text", base=base, experts=experts, data=_GLUE, options=options, validation=0.2
        )
    tower = _MODELS[model or NAMES[name][0]]
    data = dict(list(_IMAGES.items())[: _COUNTS[name]])
    return PublishedSuite(
        name=f"{name}:{model or NAMES[name][0]}",
        kind="hf_clip",
        base=f"openai/{tower}",
        experts={task: f"tanganke/{tower}_{task}" for task in data},
        data=data,
    )


@lru_cache(maxsize=1)
def prompts() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Return task -> ``classes`` in the order of the labels and ``templates`` with {} for the class."""
    return json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
