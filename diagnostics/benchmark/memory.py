"""Private memory of a step with mapped task vectors, against the number of tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from bounds.types import refuse
from diagnostics.benchmark.measuring import MIB
from diagnostics.benchmark.merge import Precision
from merging.commands import console, track


def measure(
    model: str = "ViT-B-32",
    tasks: tuple[int, ...] = (2, 20),
    batch: int = 2,
    storage: Precision = "float32",
    folder: Path = Path(),
    threads: int = 0,
) -> None:
    """Measure the peak private memory of a SAM step with mapped task vectors, for each number of tasks.

    Each number is measured in a process of its own; "private" is memory that belongs to no file (RssAnon).

    Args:
        model: open_clip model whose visual tower is merged (random weights).
        tasks: numbers of experts.
        batch: examples of each task in a step.
        storage: precision of the task vectors.
        folder: where the mapped files are made, one after the other, and removed.
        threads: torch threads (0: torch's default).
    """
    table = Table(
        "tasks", "file (GB)", "private peak (MiB)", "ratio to the first", "step (s)", title=f"{model}, {storage}"
    )
    first = None
    for count in track(tasks, "numbers of tasks"):
        options = {
            "model": model,
            "tasks": count,
            "batch": batch,
            "storages": storage,
            "perturbations": "coefficients",
            "place": "mapped",
            "folder": folder,
            "threads": threads,
            "json-out": "-",
        }
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "diagnostics.benchmark", "merge", "--no-floor", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            refuse(f"{count} tasks", expected="a finished run", got=finished.stderr.strip()[-200:], cure="mend it")
        case = json.loads(finished.stdout)[0]
        peak = case["peak_private_bytes"]
        first = first or peak
        size = f"{case['file_bytes'] / 1e9:.1f}"
        table.add_row(str(count), size, f"{peak / MIB:.0f}", f"{peak / first:.3f}", f"{case['step_seconds']:.1f}")
    console().print(table)
