"""λ of a merge, in order of depth, and how its learning went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merging.artifact import MergeArtifact

POINTS = 200
"""Most points of the history."""


@dataclass(frozen=True, kw_only=True)
class CoefficientMap:
    """λ [T, L]: a row per task, a column per block, in the order of θ_0's tensors; exact.

    ``steps`` and ``loss`` are what the method logged while it learned λ, thinned to a few hundred points (empty where
    it learned nothing).
    """

    blocks: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    steps: tuple[int, ...]
    loss: tuple[float, ...]


def coefficient_map(artifact: MergeArtifact, names: Sequence[str]) -> CoefficientMap | None:
    """Return λ with its blocks in order; None where the merge has none.

    Args:
        artifact: the merge.
        names: of θ_0's tensors, in order of depth.
    """
    if artifact.coefficients is None or artifact.blocks is None:
        return None
    position = {name: index for index, name in enumerate(names)}
    first = {block: min(position[name] for name in inside) for block, inside in artifact.blocks.items()}
    columns = sorted(range(len(first)), key=list(first.values()).__getitem__)
    loss = artifact.history.get("loss", [])
    steps = range(0, len(loss), max(1, -(-len(loss) // POINTS)))
    return CoefficientMap(
        blocks=tuple(list(first)[column] for column in columns),
        values=tuple(map(tuple, artifact.coefficients[:, columns].double().tolist())),
        steps=tuple(steps),
        loss=tuple(float(loss[step]) for step in steps),
    )
