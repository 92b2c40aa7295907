"""Named settings of published code and papers: ``--preset`` of the command, ``settings`` from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bounds.types import meant, refuse


@dataclass(frozen=True)
class Preset:
    """Settings of a method, and what a reader of its result must know."""

    settings: Mapping[str, Any]
    note: str


_SPLIT = "images come from the calibration split, disjoint from test (the published code: from the test split)"
_RELEASED: Mapping[str, Any] = {
    "objective": "kl",
    "temperature": 2.0,
    "granularity": "tensor",
    "reduction": "sum",
    "optimizer": "adam",
    "average": "none",
    "learning_rate": 1e-3,
    "weight_decay": 5e-4,
    "rho": 0.07,
    "init": 0.0,
    "batch": 16,
    "cached": 100,
    "steps": 1000,
    "examples": None,
}
"""Adam, L2 on λ, KL(expert ‖ merge) at temperature 2 without its square, one λ per tensor, the tasks' losses added up,
λ = 0 at the start, no clamp, 100 batches of 16 made once, 10 times through."""

_RANKS: Mapping[str, Any] = {
    "steps": 10_000,
    "batch": 16,
    "examples": None,
    "reduction": "sum",
    "learning_rate": 1e-3,
    "mask_learning_rate": 1e-3,
}
"""AdaRank on ViT-B/32 with eight tasks: Adam at one learning rate on coefficients and masks, entropies added up."""

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "samerging": {
        "released": Preset(
            {**_RELEASED, "perturbation": "none"},
            "the published code: its weights are not merged anew between the two passes, so SAM never acts; " + _SPLIT,
        ),
        "paper": Preset(
            {**_RELEASED, "perturbation": "coefficients-adaptive"},
            "the published settings with a SAM that acts: its adaptive perturbation is exactly 0 at λ = 0, so the "
            "first step has none, and it stays of the order of ρ|λ|; " + _SPLIT,
        ),
    },
    "adamerging": {
        "paper": Preset(
            {"steps": 500, "batch": 16, "examples": None, "reduction": "sum", "clamp": True},
            "the paper's settings with λ kept in [0, 1] as in its code, which takes two batches of each task in a step "
            "(here one); " + _SPLIT,
        ),
    },
    "adarank": {
        "released": Preset(
            {**_RANKS, "init": 0.3},
            "the published code's settings on task vectors (it reports its best step by test accuracy, here it is "
            "the last); " + _SPLIT,
        ),
        "released-cart": Preset(
            {**_RANKS, "init": 2.3, "centred": True, "kept": 0.16},
            "the published code's settings on what experts differ from their average (it reports its best step by test "
            "accuracy, here the last is merged); " + _SPLIT,
        ),
    },
}
"""Method -> name -> preset."""


def find(method: str, name: str | None) -> Preset:
    """Return a preset of a method; without a name, one that sets nothing.

    Raises:
        InputError: no such preset.
    """
    known = PRESETS.get(method, {})
    if name is None:
        return Preset({}, "")
    if name not in known:
        refuse(
            f"preset of {method}",
            expected=" or ".join(known) or "none",
            got=repr(name),
            cure=meant(name, known, "leave it out"),
        )
    return known[name]
