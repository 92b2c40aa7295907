"""The published JSON Schema of report.json, made from its data classes; ``python -m diagnostics.schema`` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from diagnostics.plain import json_schema
from diagnostics.report import SCHEMA, Report
from diagnostics.work.cache import write

FILE = Path(__file__).with_name("report.schema.json")


def schema() -> dict[str, Any]:
    """Return the schema. Equation numbers in it are those of docs/theory.md."""
    content = json_schema(Report, f"{SCHEMA}: a bound report")
    content["properties"]["schema"] = {"const": SCHEMA}
    return content


def text() -> str:
    """Return the file's text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write(FILE, text().encode())
    sys.exit(0)
