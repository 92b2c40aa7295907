"""What a section of the report is: its numbers, how to compute them, and how to show them. One file owns all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args

from rich.table import Table

from diagnostics.settings import Settings
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.work.reads import Noted, Reads
from diagnostics.workspace import Scored, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = TypeVar("Data")
Part = TypeVar("Part")
ALL_SCORED: frozenset[Scored] = frozenset(get_args(Scored))
"""Both kinds of task."""


class View:
    """What a section may look at, besides its own numbers, when it is shown: the tasks, the settings, other sections.

    ``label`` and ``file`` are the merge's; ``tasks`` and ``settings`` are the report's. Everything notes in ``reads``
    that it was looked at: a kept figure rests on what was noted while it was drawn.
    """

    def __init__(
        self, label: str, file: str, tasks: Sequence[str], settings: Settings, parts: Mapping[type, Any]
    ) -> None:
        self._parts = {kind.__name__: part for kind, part in parts.items()}
        today = {**asdict(settings), **self._parts, "label": label, "file": file, "tasks": tasks}
        self.reads = Reads(today.get)
        self.settings = cast(Settings, Noted(settings, self.reads))
        self._label, self._file, self._tasks = label, file, tasks

    @property
    def label(self) -> str:
        """The merge's label."""
        self.reads.note(("label",))
        return self._label

    @property
    def file(self) -> str:
        """The merge's file."""
        self.reads.note(("file",))
        return self._file

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks."""
        self.reads.note(("tasks",))
        return self._tasks

    def part(self, kind: type[Part]) -> Part | None:
        """Return the section of the same merge with this data class, or None where it was not made."""
        self.reads.note((kind.__name__,))
        return self._parts.get(kind.__name__)


@dataclass(frozen=True)
class Drawn(Generic[Data]):
    """A figure of a section: how it is drawn with matplotlib; ``once`` where it is the same for all merges.

    ``there`` says whether there is anything to draw.
    """

    draw: Callable[[View, Data], Figure]
    once: bool = False
    there: Callable[[Data], bool] = lambda part: True


@dataclass(frozen=True, kw_only=True)
class Section(Generic[Data]):
    """One section of a report, for every merge.

    ``kind`` is the data class of its numbers, made by ``compute``; ``title`` heads it on the page and ``link`` leads to
    it. Its template NAME.html.j2 lies beside the module of ``compute``. ``table`` shows it on a terminal, ``figures``
    (name -> figure) on the page. ``sentence`` is its part of the verdict ("" for none), ``assumptions`` are its lines
    of the ledger, over all merges that have it, and ``missing`` says which statements could not be made, and why.
    ``how`` are the numbers of the equations (``diagnostics.equations``) that a reader of the page may want explained.
    ``late`` sections are computed after the others: what a short budget should buy first comes first.
    ``scored`` says which kinds of task it serves, by what has a row of scores. Of tasks of another kind it is not made,
    and ``rests_on`` says what of it they do not have; "" where nothing is lost, because another section says the same.
    """

    kind: type[Data]
    compute: Callable[[Workspace, Subject], Data]
    title: str
    link: str
    table: Callable[[View, Data], Table] | None = None
    figures: Mapping[str, Drawn[Data]] = field(default_factory=dict)
    sentence: Callable[[View, Data], str] = lambda view, part: ""
    assumptions: Callable[[Sequence[tuple[View, Data]]], Sequence[Assumption]] = lambda parts: ()
    missing: Callable[[Data], Mapping[str, str]] = lambda part: {}
    how: Sequence[str] = ()
    late: bool = False
    scored: AbstractSet[Scored] = ALL_SCORED
    rests_on: str = ""

    def unserved(self, scored: Scored) -> str | None:
        """Return why it is not made for tasks of a kind, in one line ("" for no reason to give); None: it is made."""
        if scored in self.scored:
            return None
        return self.rests_on and f"it needs one row of scores for each {' or '.join(self.scored)}: {self.rests_on}"

    @property
    def folder(self) -> Path:
        """Where its template is."""
        return Path(str(sys.modules[self.compute.__module__].__file__)).parent
