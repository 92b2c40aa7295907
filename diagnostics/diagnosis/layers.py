"""The layers of a merge in at most a dozen groups, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bounds.types import Blocks, Params
from merging.params import squared_norms

MOST_GROUPS = 12


@dataclass(frozen=True)
class LayerGroup:
    """Neighbouring blocks: what they are called, their tensors, their share of ‖θ_m - θ_0‖²."""

    name: str
    patterns: tuple[str, ...]
    share: float


def layer_groups(blocks: Blocks, displacement: Params, most: int = MOST_GROUPS) -> list[LayerGroup]:
    """Return at most ``most`` groups of the blocks that the merge moves, in their order. Exact.

    None where the merge moves one block alone: back at θ_0 it would be the pretrained model.

    Args:
        blocks: partition of the parameters, in order of depth.
        displacement: θ_m - θ_0.
        most: groups; neighbouring blocks are put together, as evenly as their number allows.
    """
    squares = squared_norms(displacement, blocks)
    moved, total = [block for block in blocks if squares[block] > 0], sum(squares.values())
    count = min(most, len(moved)) if len(moved) > 1 else 0
    parts = [moved[i * len(moved) // count : (i + 1) * len(moved) // count] for i in range(count)]
    return [
        LayerGroup(
            part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}",
            tuple(pattern for block in part for pattern in _patterns(block, blocks)),
            sum(squares[block] for block in part) / total,
        )
        for part in parts
    ]


def _patterns(block: str, blocks: Blocks) -> Sequence[str]:
    """Return patterns that name a block's tensors and no others."""
    inside = {name for names in blocks.values() for name in names if name.startswith(f"{block}.")}
    return [f"{block}.*"] if inside == set(blocks[block]) else blocks[block]
