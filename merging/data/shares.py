"""Disjoint splits of one data set: seeded, stratified by label, identical examples never in two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bounds.types import refuse
from merging.task import SPLITS

ROUNDING = 1e-9
"""Shares such as 0.7 + 0.2 + 0.1 miss 1 by rounding."""


def shares(
    count: int,
    given: Mapping[str, float],
    seed: int,
    labels: Tensor | None = None,
    groups: Tensor | None = None,
    what: str = "splits",
) -> dict[str, Tensor]:
    """Deal ``count`` examples to splits: name -> indices int64, disjoint, in a random order.

    A split's size is exact (shares are rounded so that they use all examples where they sum to 1), unless a group of
    identical examples does not fit into the room that is left; then the sizes are as near as the groups allow. With
    ``labels``, the first k indices of every split hold each class in its share of the data, up to one or two examples,
    for any k. The same arguments give the same splits on every machine with this release of PyTorch.

    Args:
        count: N.
        given: train, calibration, validation or test -> its share of the data (a float in 0..1; 1.0 is all of it) or
            its number of examples (an int; 1 is one example).
        seed: of the order in which examples are dealt.
        labels: int64 [N], by which the splits are stratified; None: they are not.
        groups: int64 [N] (:func:`merging.data.groups`); examples of one number come into one split. None: each alone.
        what: how an error calls the splits.

    Raises:
        InputError: other names, values that are no shares or counts, more than there is, a split without an example.
    """
    sizes = _sizes(count, given, what)
    for name, tensor in (("labels", labels), ("groups", groups)):
        if tensor is not None and tensor.shape != (count,):
            cure = "pass one for each example"
            refuse(f"{name} of {what}", expected=f"{count} whole numbers", got=tuple(tensor.shape), cure=cure)
    kinds = [0] * count if labels is None else labels.tolist()
    members = _members([*range(count)] if groups is None else groups.tolist())
    result = _dealt(_order(members, kinds, seed), sizes, whole=sum(sizes.values()) == count)
    for name, found in result.items():
        if not found:
            cure = "ask for larger splits, or take copies out of the data"
            got = f"none left: {count} examples, of which {len(members)} are distinct"
            refuse(f"split {name} of {what}", expected="at least one example", got=got, cure=cure)
    return {name: torch.tensor(found, dtype=torch.int64) for name, found in result.items()}


def _sizes(count: int, given: Mapping[str, float], what: str) -> dict[str, int]:
    """Return the number of examples of every split."""
    if not given:
        refuse(what, expected=f"some of {', '.join(SPLITS)}", got="none", cure="write e.g. test: 0.2")
    for name, value in given.items():
        if name not in SPLITS:
            refuse(what, expected=f"{', '.join(SPLITS)}", got=repr(name), cure="rename or remove it")
        _check_value(value, f"split {name} of {what}")
    counts = {name: value for name, value in given.items() if isinstance(value, int)}
    parts = {name: value for name, value in given.items() if not isinstance(value, int)}
    asked = sum(counts.values()) + count * sum(parts.values())
    if sum(parts.values()) > 1 + ROUNDING or asked > count * (1 + ROUNDING):
        got = (
            f"{sum(counts.values())} examples and shares of {sum(parts.values()):g}" if counts else f"{asked / count:g}"
        )
        refuse(what, expected=f"at most all {count} examples", got=got, cure="ask for less")
    sizes, before, whole = dict(counts), 0.0, 0
    for name, value in parts.items():
        before += value
        end = math.floor(count * before + 0.5 + ROUNDING * count)
        sizes[name], whole = min(end, count - sum(counts.values())) - whole, end
        if sizes[name] < 1:
            got, cure = f"{value:g} of {count}", "ask for a larger share, or for a number of examples"
            refuse(f"split {name} of {what}", expected="at least one example", got=got, cure=cure)
    return {name: sizes[name] for name in SPLITS if name in sizes}


def _check_value(value: object, what: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and not (isinstance(value, float) and 0.0 < value <= 1.0):
        count = isinstance(value, float) and value > 1 and value.is_integer()
        cure = f"write {int(value)}" if count and isinstance(value, float) else "write e.g. 0.2 or 400"
        refuse(what, expected="a share in 0..1 or a whole number of examples", got=value, cure=cure)


def _members(groups: Sequence[int]) -> list[list[int]]:
    """Return the examples of each group, in order of its first."""
    found: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return list(found.values())


def _order(members: list[list[int]], kinds: Sequence[int], seed: int) -> list[list[int]]:
    """Return the groups in a random order of which every stretch holds each kind in its share.

    The j-th of the m groups of a kind is put at the place (j + u) / m in 0..1, with one random u for each kind. A group
    is of its first example's kind.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = [members[index] for index in torch.randperm(len(members), generator=generator).tolist()]
    by_kind: dict[int, list[list[int]]] = {kind: [] for kind in sorted(set(kinds))}
    for group in shuffled:
        by_kind[kinds[group[0]]].append(group)
    offsets = torch.rand(len(by_kind), generator=generator, dtype=torch.float64).tolist()
    places = [
        ((number + offset) / len(found), kind, group)
        for offset, (kind, found) in zip(offsets, by_kind.items(), strict=True)
        for number, group in enumerate(found)
    ]
    return [group for *_, group in sorted(places, key=lambda entry: entry[:2])]


def _dealt(order: list[list[int]], sizes: Mapping[str, int], *, whole: bool) -> dict[str, list[int]]:
    """Fill the splits one after the other; a group that does not fit goes to the next one with room for it.

    Where all examples are dealt (``whole``), a group that fits nowhere goes where most room is left.
    """
    result: dict[str, list[int]] = {name: [] for name in sizes}
    for group in order:
        room = {name: size - len(result[name]) for name, size in sizes.items()}
        name = next((name for name, left in room.items() if left >= len(group)), None)
        if name is None and whole:
            name = max(room, key=lambda name: room[name])
        if name is not None:
            result[name] += group
    return result
