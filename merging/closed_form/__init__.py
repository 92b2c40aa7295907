"""Merges in closed form, row by row: no gradient, no learning."""

from __future__ import annotations

from collections.abc import Mapping

from merging.closed_form import regression, slerp, sparse, spectral, uniform
from merging.rows import Method

ROWS: Mapping[str, Method] = {**uniform.ROWS, **sparse.ROWS, **spectral.ROWS, **slerp.ROWS, **regression.ROWS}

__all__ = ["ROWS"]
