"""What a suite file says: its sections as data classes, checked name by name, each error with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bounds.types import refuse
from merging.data import Source
from merging.plain import given
from merging.suites.yaml_lines import Document, Place, read_yaml
from merging.task import SPLITS

RESERVED = ("heads", "README.md", "merging_weights.pt", "model.safetensors")
"""Names that an exported folder has for itself."""
CURE = "see docs/own_experts.md, or mergebound suite init"


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """``kind`` of network, ``base`` weights (θ_0), and the kind's own options."""

    kind: str
    base: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """One expert with its data.

    ``data`` is one data set, cut into shares (``splits``), or one for each split; what it lacks is in
    the file's ``data``. ``classes`` are names in the order of the scores (default: the expert's own, or the data's),
    ``templates`` the prompts of a zero-shot head.
    """

    name: str
    expert: str
    data: Mapping[str, Any] | str = field(default_factory=dict)
    splits: Mapping[str, Any] | None = None
    classes: list[str] | None = None
    templates: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteFile:
    """A suite file; paths in it are relative to its folder.

    ``splits`` are shares (0..1) or counts of one data set, by ``seed``; of a data set for each split, what is cut from
    one for another: ``{train: {calibration: 64}}``. ``shared_examples``: refuse examples that stand in two splits of a
    task, or name them in a warning. ``cache`` keeps what the network reads of the data (default: a folder of the user's
    cache; none: memory).
    """

    model: Mapping[str, Any]
    tasks: list[TaskSection]
    name: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, Any] | None = None
    templates: list[str] | None = None
    seed: int = 0
    shared_examples: Literal["refuse", "name"] = "refuse"
    cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class Read:
    """A suite file that was read: where every part of it stands, and its sections."""

    document: Document
    file: SuiteFile
    model: ModelSection

    @property
    def folder(self) -> Path:
        """What paths are relative to."""
        return self.document.path.parent

    def path(self, text: str) -> Path:
        """Return a path of the file as a path from here."""
        return self.folder / Path(text).expanduser()

    def sources(self, index: int) -> dict[str, Source]:
        """Return the data of a task: split -> data set, or ``""`` -> the one that is cut into all of them.

        Raises:
            InputError: a data section that is neither, or has unknown names.
        """
        task, common = self.file.tasks[index], dict(self.file.data)
        place: Place = ("tasks", index, "data")
        if task.classes:
            common["classes"] = task.classes
        own = dict(self._mapping(task.data, place))
        if own and all(name in SPLITS for name in own):
            return {split: self._source({**common, **self._mapping(part, (*place, split))}, (*place, split))
                    for split, part in own.items()}  # fmt: skip
        if any(name in SPLITS for name in own):
            cure = "give every split a data set, or all of them one"
            refuse(self.document.where(place), expected="names of splits alone, or none", got=list(own), cure=cure)
        return {"": self._source({**common, **own}, place)}

    def _mapping(self, value: Any, place: Place) -> Mapping[str, Any]:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, Mapping):
            refuse(self.document.where(place), expected="a path, or names with values", got=repr(value), cure=CURE)
        return value

    def _source(self, value: Mapping[str, Any], place: Place) -> Source:
        return given(Source, value, lambda steps: self.document.where((*place, *steps)), CURE)


def read(path: Path) -> Read:
    """Read and check a suite file; no model and no data are looked at.

    Raises:
        InputError: see :func:`merging.suites.yaml_lines.read_yaml`; unknown or missing names, values of another type;
            no task, two tasks of one name.
    """
    document = read_yaml(path)
    file = given(SuiteFile, document.value, document.where, CURE)
    names = [task.name for task in file.tasks]
    if not names or len(set(names)) != len(names):
        got = f"{max(names, key=names.count)!r} twice" if names else "none"
        refuse(document.where(("tasks",)), expected="one task or more, each with a name of its own", got=got, cure=CURE)
    for index, name in enumerate(names):
        if name in RESERVED or Path(name).name != name or name.startswith("."):
            cure = "rename the task: exports give it a folder of its own"
            refuse(document.where(("tasks", index, "name")), expected="a name for a folder", got=repr(name), cure=cure)
    known = {name: value for name, value in file.model.items() if name in ("kind", "base")}
    options = {name: value for name, value in file.model.items() if name not in known}

    def where(steps: Any) -> str:
        return document.where(("model", *steps))

    return Read(document=document, file=file, model=given(ModelSection, {**known, "options": options}, where, CURE))
