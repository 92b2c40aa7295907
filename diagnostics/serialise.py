"""``report.json``: the report as plain JSON; ``report.schema.json`` beside this file documents every field."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bounds.types import Bound, Estimate
from diagnostics.anchors import Anchors
from diagnostics.report import Report

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; numbers that are not finite become null."""
    content = {
        "schema": report.schema,
        "artifact": dict(report.artifact),
        "settings": asdict(report.settings),
        "alpha": list(report.alpha),
        "beta": list(report.beta),
        "blocks": list(report.blocks),
        "tasks": [asdict(row) for row in report.tasks],
        "distance": report.distance,
        "expert_distances": list(report.expert_distances),
        "measured": {
            "risk": report.measured_risk,
            "error": report.measured_error,
            "trivial_risk": report.trivial_risk,
        },
        "bounds": [_bound(bound) for bound in report.bounds],
        "vertices": [_estimate(e) for e in report.vertices],
        "experts": {reading: _anchors(side) for reading, side in report.anchors.items()},
        "ladder": _ladder(report),
        "sweep": {
            "ntk_radius": report.ntk_radius,
            "points": [
                {
                    **asdict(p),
                    "risk": _estimate(p.risk),
                    "linear_risk": _estimate(p.linear_risk),
                    "transfer": _estimate(p.transfer),
                }
                for p in report.sweep
            ],
        },
        "seconds": dict(report.seconds),
    }
    return _finite(content)


def write_json(report: Report, path: Path) -> None:
    """Write ``to_json`` atomically."""
    text = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate)


def _bound(bound: Bound) -> dict[str, Any]:
    return {
        "name": bound.name,
        "reading": bound.reading,
        "value": bound.value,
        "stderr": bound.stderr,
        "status": bound.status,
        "vacuous": bound.vacuous,
        "trivial_risk": bound.trivial_risk,
        "delta": bound.delta,
        "assumptions": list(bound.assumptions),
        "terms": [{**asdict(term), "share": bound.shares[term.symbol]} for term in bound.terms],
    }


def _anchors(side: Anchors) -> dict[str, Any]:
    return {
        "log_price": side.log_price,
        "cross_risk": side.cross.risk.tolist(),
        "cross_risk_stderr": side.cross.stderr.tolist(),
        "cross_risk_examples": list(side.cross.sizes),
        "statistics": [{**asdict(s), "kl": s.kl} for s in side.statistics],
    }


def _ladder(report: Report) -> dict[str, Any]:
    ladder = report.ladder
    rungs = (*ladder.rungs, ladder.divergence, ladder.disagreement, ladder.surrogate)
    return {
        "cost_bound": ladder.cost_bound,
        "surrogate_temperature": ladder.surrogate_temperature,
        "rungs": [
            {"name": r.name, "per_task": [_estimate(e) for e in r.per_task], "total": _estimate(r.total)} for r in rungs
        ],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
