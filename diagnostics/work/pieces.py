"""How anything is computed once: kept under what it belongs to, the code behind it and what it looked at.

What a piece looks at is known only after it was computed. Beside the pieces the cache therefore keeps, per name, the
sets of fields that were looked at; a kept piece is found under today's values of one of these sets. A set that is wrong
or lost can only cost a computation, since the values themselves are part of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from diagnostics.work.cache import Cache, digest
from diagnostics.work.identity import code_of
from diagnostics.work.reads import Reads
from diagnostics.work.workers import Track, each
from merging.rows import silent

Data = TypeVar("Data")
Fields = tuple[str, ...]


@dataclass(frozen=True)
class Pieces:
    """Independent pieces of work ``function(0..count-1)``, each kept under the name, ``of`` and its number.

    ``of`` are plain values that identify what the function captured besides the suite (a merge's key, a direction's
    name). Settings are not among them: they are noted when the function looks at them. A value captured by the
    function that was made from settings must be a :class:`diagnostics.work.reads.Made`, taken inside it.
    """

    name: str
    of: Any
    function: Callable[[int], Mapping[str, Any]]
    count: int


@dataclass(frozen=True)
class _Kept:
    """The pieces of a group and everything that they looked at."""

    pieces: list[Any]
    fields: set[str]


class Keeper:
    """Finds what is kept, computes and keeps what is not; every result notes in ``reads`` what it rests on.

    ``identity`` is the hash of what everything here belongs to (a suite); ``prepare`` is called before anything is
    computed, in the process that others are forked from.
    """

    def __init__(
        self,
        cache: Cache,
        reads: Reads,
        identity: Callable[[], str],
        prepare: Callable[[], None] = lambda: None,
        *,
        workers: int = 1,
        track: Track = silent,
    ) -> None:
        self.cache, self.reads, self.identity, self.prepare = cache, reads, identity, prepare
        self.workers, self.track = workers, track
        self._known: dict[str, list[Fields]] = {}
        self._gathered: dict[tuple[str, str], _Kept] = {}

    def has(self, name: str, of: Any, compute: Callable[..., Any]) -> bool:
        """Whether the data class that ``compute`` returns is kept."""
        key = self._key(of, compute)
        return any(self.cache.has(name, full) for full, _ in self._places(name, key))

    def data(self, kind: type[Data], name: str, of: Any, compute: Callable[..., Any], make: Callable[[], Data]) -> Data:
        """Return the data class kept for ``compute`` (whose source is part of the key), or ``make`` and keep it."""
        key = self._key(of, compute)
        for full, fields in self._places(name, key):
            if self.cache.has(name, full):
                value = self.cache.data(kind, name, full, make)
                self.reads.note(fields)
                return value
        with self.reads.recording() as seen:
            value = make()
        return self.cache.data(kind, name, self._place(name, key, seen), lambda: value)

    def pieces(self, wanted: Pieces, what: str) -> list[Any]:
        """Return the pieces, each from the cache or computed and kept as soon as it is there."""
        return self.gather([wanted], what)[0]

    def gather(self, groups: Sequence[Pieces], what: str) -> list[list[Any]]:
        """Return the pieces of every group; what is missing is spread over the processes together.

        Processes that torchrun started go through the same program: each computes its share, and all get everything.
        """
        keys = [self._key(group.of, group.function) for group in groups]
        kept: dict[tuple[str, str], _Kept] = {}
        todo: list[tuple[Pieces, str, int]] = []
        for group, key in zip(groups, keys, strict=True):
            if (group.name, key) not in self._gathered and (group.name, key) not in kept:
                found = kept[group.name, key] = self._load(group, key)
                todo += [(group, key, i) for i, piece in enumerate(found.pieces) if piece is None]
        if todo:
            self.prepare()
            for job, fields, piece in self._computed(todo, what):
                group, key, i = todo[job]
                kept[group.name, key].pieces[i] = piece
                kept[group.name, key].fields.update(fields)
        self._gathered.update(kept)
        results = [self._gathered[group.name, key] for group, key in zip(groups, keys, strict=True)]
        for result in results:
            self.reads.note(result.fields)
        return [result.pieces for result in results]

    def _computed(self, todo: Sequence[tuple[Pieces, str, int]], what: str) -> Iterator[tuple[int, Fields, Any]]:
        """Compute the jobs, keep each as soon as it is there; yield its number, its fields and its piece."""
        processes = self.cache.processes
        own = [job for job in range(len(todo)) if processes.mine(job)]

        def one(job: int) -> Mapping[str, Any]:
            group, _, i = todo[job]
            with self.reads.recording() as seen:
                piece = group.function(i)
            return {"fields": sorted(seen), "piece": dict(piece)}

        def save(job: int, result: Mapping[str, Any]) -> None:
            group, key, i = todo[job]
            self.cache.save(f"{group.name}-{i}", self._place(group.name, key, result["fields"]), result["piece"])

        def compute() -> dict[int, Mapping[str, Any]]:
            found = {}
            for job, result in zip(own, each(one, own, workers=self.workers, track=self.track, what=what), strict=True):
                save(job, result)
                found[job] = result
            return found

        for share in processes.gather(compute):
            for job, result in share.items():
                if not processes.mine(job):
                    save(job, result)
                yield job, tuple(result["fields"]), result["piece"]

    def _load(self, group: Pieces, key: str) -> _Kept:
        pieces: list[Any] = [None] * group.count
        seen: set[str] = set()
        for full, fields in self._places(group.name, key):
            for i, piece in enumerate(pieces):
                if piece is None and (kept := self.cache.load(f"{group.name}-{i}", full)) is not None:
                    pieces[i] = kept
                    seen.update(fields)
        return _Kept(pieces, seen)

    def _key(self, of: Any, function: Callable[..., Any]) -> str:
        return digest(self.identity(), code_of(function), of)

    def _places(self, name: str, key: str) -> list[tuple[str, Fields]]:
        """Return the keys under which a result may be kept, with the fields that it looked at then."""
        if name not in self._known:
            kept = self.cache.load("reads", name)
            self._known[name] = [] if kept is None else [tuple(fields) for fields in kept["fields"]]
        return [(self._full(key, fields), fields) for fields in self._known[name]]

    def _place(self, name: str, key: str, seen: Iterable[str]) -> str:
        """Return the key under which to keep a result that looked at ``seen``, and remember this set."""
        fields, known = tuple(sorted(seen)), self._known.setdefault(name, [])
        if fields not in known:
            known.append(fields)
            known.sort()  # every process asks in the same order, whichever piece it computed first
            self.cache.save("reads", name, {"fields": [list(fields) for fields in known]})
        return self._full(key, fields)

    def _full(self, key: str, fields: Fields) -> str:
        return digest(key, self.reads.values(fields))
