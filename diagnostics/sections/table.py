"""The table of sections, in the order of the page: a new section is its file, its template and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostics.sections import (
    accuracy,
    bound,
    certificates,
    diagnosis,
    distillation,
    entk,
    flatness,
    geometry,
    heterogeneity,
    label_free,
    ledger,
    sweep,
    token_certificates,
    tokens,
)
from diagnostics.sections.base import Section
from diagnostics.workspace import Scored

SECTIONS: Mapping[str, Section[Any]] = {
    "diagnosis": diagnosis.SECTION,
    "accuracy": accuracy.SECTION,
    "tokens": tokens.SECTION,
    "ledger": ledger.SECTION,
    "bound": bound.SECTION,
    "heterogeneity": heterogeneity.SECTION,
    "flatness": flatness.SECTION,
    "entk": entk.SECTION,
    "distillation": distillation.SECTION,
    "label_free": label_free.SECTION,
    "token_certificates": token_certificates.SECTION,
    "certificates": certificates.SECTION,
    "geometry": geometry.SECTION,
    "sweep": sweep.SECTION,
}


def serving(scored: Scored) -> Mapping[str, Section[Any]]:
    """Return the sections that serve a kind of task, in the order of the page."""
    return {name: section for name, section in SECTIONS.items() if section.unserved(scored) is None}
