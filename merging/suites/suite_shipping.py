"""The end of a build: the suite's files in their folder, measured as they are stored, and the manifest last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merging.files import encoded
from merging.methods import merge
from merging.suites.base import Suite
from merging.suites.manifest import MANIFEST
from merging.suites.stages import Stages
from merging.task import mean_accuracy


def ship(
    stages: Stages,
    files: Mapping[str, Path],
    manifest: Mapping[str, Any],
    out: Path,
    assemble: Callable[[Path, Mapping[str, Any]], Suite],
) -> None:
    """Copy every file of a suite into its folder, measure the suite, write the manifest with the figures.

    Args:
        stages: of the build; the figures are one more.
        files: name in the folder -> where the stage is kept.
        manifest: without the figures.
        out: the suite's folder.
        assemble: makes the suite of (folder, manifest).
    """
    for name, path in files.items():
        _place(path, out / name)
    figures = stages.file(
        "figures.json",
        {"manifest": manifest},
        lambda path: path.write_bytes(_text(_accuracies(assemble(out, manifest)))),
    )
    accuracies = json.loads(figures.read_text(encoding="utf-8"))
    whole = {**manifest, "test_accuracy": accuracies}
    _place(stages.file(MANIFEST, whole, lambda path: path.write_bytes(_text(whole))), out / MANIFEST)
    for model, values in accuracies.items():
        print(f"{model}: mean test accuracy {100 * sum(values) / len(values):.2f} %", flush=True)


def _accuracies(suite: Suite) -> dict[str, list[float]]:
    """Return the test accuracies, task by task, of θ_0, of each expert on its own task, and of the average."""
    vectors, tasks = suite.task_vectors, suite.tasks
    average = merge("average", vectors, tasks).merged
    return {
        "pretrained": [mean_accuracy([task], vectors.base, "test") for task in tasks],
        "experts": [mean_accuracy([task], vectors.expert(i), "test") for i, task in enumerate(tasks)],
        "average": [mean_accuracy([task], average, "test") for task in tasks],
    }


def _text(content: Any) -> bytes:
    return encoded(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _place(stage: Path, to: Path) -> None:
    """Copy a stage's file to its place, as a whole or not at all; the place may be in the package."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    shutil.copyfile(stage, part)
    os.replace(part, to)
