"""The numbers of a distance sweep: its paths, and what the experts' anchors cost along them."""

from __future__ import annotations

from dataclasses import dataclass

from bounds.types import Estimate
from diagnostics.terms.path import SweepPoint


@dataclass(frozen=True, kw_only=True)
class SweepPath:
    """One path; ``kind`` is merge, expert or random; ``norm`` = ‖d‖, the distance at s = 1.

    ``ntk_radius`` is the smallest distance at which the residual reaches ``tolerance`` (None: nowhere on the path).
    """

    name: str
    kind: str
    norm: float
    tolerance: float
    ntk_radius: float | None
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True)
class Policy:
    """How the experts' anchors θ_0 + cτ_j are chosen, and their slack Σβ_j s_j (17) at every s of the first path.

    By (5a) the linearised bound at θ(s) is the risk of f^lin there plus this slack, in every direction.
    """

    name: str
    about: str
    slack: tuple[Estimate, ...]


@dataclass(frozen=True, kw_only=True)
class SweepSection:
    """The merge's path first, then the controls; ``examples`` held-out examples per task behind every number.

    The drift rests on ``gram_examples`` of them; ``rho`` is the radius of the sharpness. ``policies`` are choices of
    anchors.
    """

    mode: str
    examples: int
    gram_examples: int
    rho: float
    policies: tuple[Policy, ...]
    paths: tuple[SweepPath, ...]
