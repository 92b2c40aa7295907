"""Rows of a comparison: what the seeds of a method gave together, ranked, with the errors that ranks need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from bounds.types import Estimate, refuse
from merging.commands import paired
from merging.commands.evaluation import mean
from merging.commands.measure import REFERENCES, Measurement, Spec
from merging.commands.packed import unpack
from merging.commands.ranks import Standing, standings
from merging.methods import METHODS

Found: TypeAlias = Mapping[str, tuple[Spec, Sequence[Measurement]]]
"""Label -> the specification and its measurements, one per seed where it draws."""


@dataclass(frozen=True)
class OverSeeds:
    """Mean over seeds and its standard error over seeds: sample standard deviation / √S (None: fewer than two)."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method with its settings, or a reference, over its seeds; where it could not run, the ``reason`` and no more.

    ``then``: the post-processings after it, each with the settings it was given.
    ``seeds``: those it was merged with (none: it draws nothing, or its settings name the seed); ``by_seed``: accuracies
    [S][T] in 0..1, ``accuracy`` [T] their means over seeds. ``mean``: accuracy over tasks with its error over seeds, of
    tasks with a label at every position minus the mean cross-entropy of a token, whose ``losses`` [T] are then there;
    ``sampled``: the same with the error over seeds and test examples. ``kl`` and ``cross_entropy`` in nats, means over
    tasks. Merges have a ``rank``, 1 the best mean. ``to_best`` and ``to_above``: mean less that of
    the best merge, and of the merge one rank above, with paired errors (:mod:`merging.commands.paired`);
    ``told_apart``: whether these are two standard errors or more. ``standing``: what all pairs of merges together say
    of the rank (:mod:`merging.commands.ranks`). ``gain``: (row − pretrained) / (experts −
    pretrained). The rest are means over seeds of the fields of :class:`~merging.commands.measure.Measurement`.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    rank: int | None = None
    accuracy: Sequence[float] = ()
    losses: Sequence[float] = ()
    by_seed: Sequence[Sequence[float]] = ()
    mean: OverSeeds | None = None
    sampled: Estimate | None = None
    gain: Estimate | None = None
    published_gain: float | None = None
    to_best: Estimate | None = None
    to_above: Estimate | None = None
    told_apart: Mapping[str, bool] = field(default_factory=dict)
    standing: Standing | None = None
    kl: OverSeeds | None = None
    cross_entropy: OverSeeds | None = None
    distance: float | None = None
    seconds: float | None = None
    search_seconds: float | None = None
    passes: float | None = None
    memory: float | None = None
    memory_before: float | None = None
    reason: str = ""

    @property
    def is_best(self) -> bool:
        """Whether it is the merge of the best mean."""
        return self.rank == 1

    @property
    def is_near_best(self) -> bool:
        """Whether it is a merge other than the best that is not told apart from it."""
        return self.rank is not None and not self.is_best and not self.told_apart["best"]


PLAIN = ("distance", "seconds", "search_seconds", "passes", "memory", "memory_before")
"""Figures of which a row has the mean over seeds and no more."""


def ranked(
    found: Found, seeds: Sequence[int], published: Mapping[str, float], *, per_position: bool = False
) -> list[Row]:
    """Return the rows, best mean first, those that could not run last.

    Args:
        found: what was measured, references included.
        seeds: of rows that draw.
        published: method -> published normalised gain.
        per_position: tasks have a label at every position: ranked by minus the mean cross-entropy of a token.

    Raises:
        InputError: no method that ran, measurements that are not of the same test examples.
    """
    rows = {label: _row(spec, measured, seeds, per_position) for label, (spec, measured) in found.items()}
    done = sorted((r for r in rows.values() if r.mean), key=_figure, reverse=True)
    merges = [row.label for row in done if row.method in METHODS]
    if not merges:
        reason = next(row.reason for row in reversed(rows.values()) if row.reason)
        refuse("methods", expected="one that runs on the suite", got=reason, cure="choose other methods")
    correct = {row.label: values_of(found[row.label][1]) for row in done}
    standing = standings({label: correct[label] for label in merges})
    compared = [replace(_compared(row, merges, correct), standing=standing.get(row.label)) for row in done]
    last = [row for row in rows.values() if row.reason]
    plain = {row.label: published.get(row.method) for row in compared if not row.then}
    return [*(replace(row, published_gain=plain.get(row.label)) for row in compared), *last]


def _figure(row: Row) -> float:
    """Return what rows are ranked by, the larger the better."""
    return -mean(row.losses) if row.losses else mean(row.accuracy)


def _compared(row: Row, merges: Sequence[str], correct: Mapping[str, paired.Values]) -> Row:
    """Return a row with its rank, its gain and its differences to others.

    Args:
        row: what its seeds gave.
        merges: labels of all merges, best first.
        correct: label -> what its test examples say (correctness, or minus losses), references included.
    """
    own, place = correct[row.label], merges.index(row.label) if row.label in merges else None
    others = {"best": merges[0] if place != 0 else None, "above": merges[place - 1] if place else None}
    differences = {name: paired.difference(own, correct[label]) for name, label in others.items() if label}
    return replace(
        row,
        rank=None if place is None else place + 1,
        sampled=paired.estimate(own),
        gain=paired.gain(own, *(correct[name] for name in REFERENCES)),
        to_best=differences.get("best"),
        to_above=differences.get("above"),
        told_apart={name: paired.told_apart(value) for name, value in differences.items()},
    )


def values_of(measured: Sequence[Measurement]) -> list[torch.Tensor]:
    """Return per task what its N_t examples say of a row's measurements [S, N_t], one per seed."""
    by_seed = [[unpack(text) for text in m.correct] for m in measured]
    return [torch.stack(task) for task in zip(*by_seed, strict=True)]


def _row(spec: Spec, measured: Sequence[Measurement], seeds: Sequence[int], per_position: bool) -> Row:
    settings = {name: value for name, value in spec.settings.items() if not (spec.draws and name == "seed")}
    row = Row(label=spec.label, method=spec.method, settings=settings, then=spec.then)
    reason = next((m.reason for m in measured if m.reason), "")
    if reason:
        return replace(row, reason=reason)
    plain = {name: _mean([getattr(m, name) for m in measured]) for name in PLAIN}
    return replace(
        row,
        seeds=tuple(seeds) if spec.draws else (),
        accuracy=[mean(values) for values in zip(*(m.accuracy for m in measured), strict=True)],
        by_seed=[list(m.accuracy) for m in measured],
        losses=[mean(values) for values in zip(*(m.cross_entropy for m in measured), strict=True)] * per_position,
        mean=_over_seeds(measured, lambda m: [-loss for loss in m.cross_entropy] if per_position else m.accuracy),
        kl=_over_seeds(measured, lambda m: m.kl),
        cross_entropy=_over_seeds(measured, lambda m: m.cross_entropy),
        **plain,
    )


def _over_seeds(measured: Sequence[Measurement], figure: Callable[[Measurement], Sequence[float]]) -> OverSeeds:
    values = [mean(figure(m)) for m in measured]
    if len(values) < 2:
        return OverSeeds(values[0])
    return OverSeeds(mean(values), statistics.stdev(values) / math.sqrt(len(values)))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there else None
