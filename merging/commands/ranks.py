"""Which merges of a comparison the test examples tell apart, all pairs looked at together, and the ranks these leave.

Every pair has a paired p-value (:mod:`merging.commands.paired`); Holm's correction over all pairs makes the statement
"these pairs differ" wrong in any of them with at most the probability ``LEVEL``. A merge then has at least as many
better ones as are told apart above it and at least as many worse as below it, which bounds its rank; these intervals
hold all true ranks at once with probability 1 − LEVEL (Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic
Studies 91; with Holm's pairs: Al Mohamad, Goeman and van Zwet 2022, Biometrics 78).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from merging.commands import paired

LEVEL = 0.05
"""Probability that any pair at all is told apart that is equal, or the other way round."""


@dataclass(frozen=True)
class Standing:
    """What all pairs together say of a merge: its rank is ``best`` to ``worst``; it is not told apart from ``alike``.

    ``letters``: two merges share one exactly where they are not told apart.
    """

    best: int
    worst: int
    alike: Sequence[str]
    letters: Sequence[str]


def standings(correct: Mapping[str, paired.Values], level: float = LEVEL) -> dict[str, Standing]:
    """Return label -> what is known of the merge's place. Estimated; all statements hold together at ``level``.

    Args:
        correct: label -> correctness of the merge's test examples, best mean first.
        level: probability that any of the statements is wrong.

    Raises:
        InputError: rows that cannot be compared.
    """
    pairs = list(itertools.combinations(correct, 2))
    p_values = paired.holm([paired.p_value(correct[a], correct[b]) for a, b in pairs])
    apart = {frozenset(pair) for pair, p in zip(pairs, p_values, strict=True) if p <= level}
    lettered = dict(zip(_letters(), groups(list(correct), apart), strict=False))
    result = {}
    for place, label in enumerate(correct):
        told = [{label, other} in apart for other in correct]
        result[label] = Standing(
            best=1 + sum(told[:place]),
            worst=len(correct) - sum(told[place:]),
            alike=[other for other, known in zip(correct, told, strict=True) if not known and other != label],
            letters=[letter for letter, group in lettered.items() if label in group],
        )
    return result


def groups(labels: Sequence[str], apart: AbstractSet[frozenset[str]]) -> list[frozenset[str]]:
    """Return the largest groups without a pair of ``apart``, by their first members; every other pair is in one.

    Insert and absorb (Piepho 2004, Journal of Computational and Graphical Statistics 13): from one group of all, every
    group that holds a pair splits into one without either, and groups within others go.
    """
    found = [frozenset(labels)]
    for pair in (pair for pair in map(frozenset, itertools.combinations(labels, 2)) if pair in apart):
        split = {group for group in found if not pair <= group}
        split |= {group - {one} for group in found if pair <= group for one in pair}
        found = [group for group in split if not any(group < other for other in split)]
    order = {label: place for place, label in enumerate(labels)}
    return sorted(found, key=lambda group: sorted(order[label] for label in group))


def _letters() -> Iterator[str]:
    """Yield a to z, aa, ab and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def counted(found: Mapping[str, Standing]) -> str:
    """Return in a sentence how many pairs are told apart, and which merges may be the best."""
    pairs = len(found) * (len(found) - 1) // 2
    apart = pairs - sum(len(standing.alike) for standing in found.values()) // 2
    best = ", ".join(label for label, standing in found.items() if standing.best == 1)
    return f"Of all {pairs} pairs of merges together {apart} are told apart. May have the best mean: {best}."
