"""What a kind of model is: weights θ that are merged, experts' files, frozen heads, raw examples, and files again.

A kind is one file of this package with a data class ``Options`` and a function ``open_base(base, options)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bounds.types import Forward, Inputs, Params, refuse
from merging.files import replacing_folder
from merging.plain import checked

Precision = Literal["float32", "float64"]
"""What weights are computed with; checkpoints in half precision are widened."""
Chosen = TypeVar("Chosen")


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A fine-tuned model as its files say it is."""

    parameters: Params
    """θ_t: names and shapes of the network's own."""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """Its classification head, by names of the module; empty where the head comes from class names."""
    class_names: tuple[str, ...] | None = None
    """Its classes in the order of its scores, where its files name them."""
    notes: tuple[str, ...] = ()
    """What was renamed, left unused or is worth knowing, one line each."""


@dataclass(frozen=True)
class TaskHead:
    """What a task's scores are made with, beside θ; frozen."""

    weights: Mapping[str, Tensor]
    """By names of the module; of a zero-shot head ``head`` [C, D], unit rows without the logit scale."""
    class_names: tuple[str, ...]
    """Classes in the order of the scores."""
    scale: float = 1.0
    """Factor of the scores: exp of CLIP's logit scale; 1 for a learned head."""


@dataclass(frozen=True)
class Export:
    """How weights are written; see :meth:`Network.write`."""

    dtype: torch.dtype
    shard_size: str
    per_task: bool


class Network(ABC):
    """A base model of one kind: reads experts, makes scores, prepares examples, writes merges.

    ``parameters`` is θ_0. What is not in θ and not in a head is the base's, frozen.
    """

    parameters: Params
    notes: tuple[str, ...] = ()
    """What is worth knowing of the base's files, one line each."""
    source: str = ""
    """What it was opened from, as the user named it."""

    @abstractmethod
    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads, in the folder that :meth:`write` wrote, a task's model: for the model card."""

    @abstractmethod
    def expert(self, path: Path) -> Expert:
        """Read an expert from a file or folder.

        Raises:
            InputError: files that are no expert of this base.
        """

    @abstractmethod
    def head(self, expert: Expert | None, class_names: Sequence[str], templates: Sequence[str] = ()) -> TaskHead:
        """Return the frozen head of a task.

        Args:
            expert: whose head it is, where heads are learned; None: the base's own.
            class_names: classes in the order of the labels; may be empty where the head's files name them.
            templates: prompts with ``{}`` for the class, where the head is made from text.

        Raises:
            InputError: no head to be had, or class names that are not the head's.
        """

    @abstractmethod
    def classifier(self, head: TaskHead) -> Forward:
        """Return (θ, inputs) -> scores [N, C], equal to the model's own library's."""

    def forward(self, expert: Expert | None, class_names: Sequence[str], templates: Sequence[str] = ()) -> Forward:
        """Return the scores of a task: :meth:`classifier` of its :meth:`head`."""
        return self.classifier(self.head(expert, class_names, templates))

    @abstractmethod
    def prepare(self, examples: Sequence[Any]) -> Inputs:
        """Turn raw examples into inputs, by the model's own tokenizer or preprocessing.

        Raises:
            InputError: examples that the model cannot read.
        """

    @property
    @abstractmethod
    def preparation(self) -> str:
        """All that :meth:`prepare` depends on, as text: the key under which prepared inputs may be kept."""

    def write(
        self,
        params: Params,
        folder: Path,
        heads: Mapping[str, TaskHead],
        dtype: torch.dtype = torch.float32,
        *,
        shard_size: str = "5GB",
        per_task: bool = True,
    ) -> list[Path]:
        """Write weights so that the model's own library loads them; the folder is there as a whole or not at all.

        Args:
            params: θ.
            folder: made here; it may be there if it is empty.
            heads: task -> its head.
            dtype: of the float tensors.
            shard_size: limit of a file, e.g. ``500MB``, where the library reads shards.
            per_task: where a head is part of the library's model, one whole model per task, in ``folder/TASK``; else
                the network once, and ``heads/TASK.safetensors``.

        Returns:
            The files.

        Raises:
            InputError: a folder that is not empty, no room, or numbers out of the range of ``dtype``.
        """
        with replacing_folder(folder) as temporary:
            self.save(params, temporary, heads, Export(dtype, shard_size, per_task))
            names = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
        return [Path(folder) / name for name in names]

    @abstractmethod
    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write into a folder that is empty; see :meth:`write`."""


def chosen(options: type[Chosen], given: Mapping[str, Any], what: str = "model") -> Chosen:
    """Build a kind's options from what a file says; the rest are defaults.

    Raises:
        InputError: an unknown option or a value of the wrong kind; names it.
    """
    known: Any = {entry.name: entry for entry in fields(options)}  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            refuse(f"{what}, {name}", expected=" or ".join(known), got=repr(name), cure="take it out")
    defaults = {
        name: entry.default if entry.default is not MISSING else entry.default_factory()
        for name, entry in known.items()
        if entry.default is not MISSING or entry.default_factory is not MISSING
    }
    return checked(options, {**defaults, **given}, what, cure="correct it")


def fitting(given: Sequence[str], own: Sequence[str] | None, count: int | None) -> tuple[str, ...]:
    """Return class names for a head of ``count`` classes: those given, else the head's own, else numbers.

    Raises:
        InputError: another number of names, or the head's own names in another order.
    """
    names = tuple(given) or tuple(own or ()) or tuple(map(str, range(count or 0)))
    if count is not None and len(names) != count:
        cure = "give one name per class, in the order of the labels"
        refuse("class names", expected=f"{count}, one per output of the head", got=len(names), cure=cure)
    if own and given and list(own) != list(given) and sorted(own) == sorted(given):
        refuse(
            "class names",
            expected=f"the order of the expert's own outputs {list(own)[:4]}",
            got=f"{list(given)[:4]}",
            cure="give them, and number the labels, in that order",
        )
    return names
