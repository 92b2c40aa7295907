"""``python -m diagnostics.export out.pt --to folder``: a merge as a folder that the model's own library loads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from bounds.running_statistics import is_statistic
from bounds.types import refuse
from diagnostics.bound_report import origin_of, read_subjects
from diagnostics.folder import read_report
from diagnostics.model_card import merge_of, render_card
from diagnostics.report import MergeReport
from merging import suites
from merging.artifact import MergeArtifact
from merging.checkpoints import write_coefficients
from merging.commands import console, options, plain, run, stage
from merging.files import check_folder, encoded, replacing_folder, write
from merging.matching import check_match
from merging.models import Export
from merging.suites import Suite

Precision = Literal["float32", "bfloat16", "float16"]
CARD, COEFFICIENTS = "README.md", "merging_weights.pt"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write a merge for the model's own library, with a model card and, where it has them, the coefficients."""

    merged: Annotated[Path, tyro.conf.Positional]
    """The artifact made by mergebound merge."""
    to: Path
    """The folder to write; it must be new or empty."""
    dtype: Precision = "float32"
    """Precision of the written weights."""
    report: Path | None = None
    """A report.json on this merge, for the card's accuracy and certificate."""
    suite: str | None = None
    """Where the suite is now (default: where the artifact says it was)."""
    shard_size: str = "5GB"
    """Largest file, where the library reads shards."""
    per_task: bool = True
    """Where a head belongs to the library's model: a whole model per task; else the network once, and its heads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(options(Command, arguments, "mergebound export")))


def _main(command: Command) -> None:
    (subject,) = read_subjects([command.merged])
    check_folder(command.to, "--to")
    measured = None
    if command.report is not None:
        measured = merge_of(read_report(command.report), subject.artifact, command.report)
    origin = command.suite or origin_of(subject)
    with stage(f"loading {origin}"):
        suite = suites.load(origin)
    check_match(suite, subject.artifact)
    with stage(f"writing {command.to}"):
        files = export(
            subject.artifact,
            suite,
            command.to,
            measured,
            dtype=getattr(torch, command.dtype),
            shard_size=command.shard_size,
            per_task=command.per_task,
        )
    size = sum(file.stat().st_size for file in files) / 1e6
    console().print(
        plain(f"{command.to}: {len(files)} files, {size:.1f} MB; {CARD} says how to load it"), soft_wrap=True
    )


def export(
    artifact: MergeArtifact,
    suite: Suite,
    folder: Path,
    measured: MergeReport | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    per_task: bool = True,
) -> list[Path]:
    """Write a merge of a suite whose kind of network is known; return the files.

    Raises:
        InputError: a suite made in memory or by a function (its network's library is unknown); a folder that is not
            empty; no room.
    """
    network = suite.network
    if network is None:
        cure = "use a suite file, or load the weights of torch.load(out.pt)['merged'] into your module"
        refuse(f"suite {suite.name}", expected="one of a kind of network that is written", got="none known", cure=cure)
    with replacing_folder(folder, "export") as room:
        network.save(artifact.merged, room, suite.heads, Export(dtype, shard_size, per_task))
        files = sorted(path for path in room.rglob("*") if path.is_file())
        if artifact.coefficients is not None and artifact.blocks is not None:
            names = [name for name in artifact.merged if not is_statistic(name)]
            write_coefficients(room / COEFFICIENTS, artifact.coefficients, artifact.blocks, names)
            files = [*files, room / COEFFICIENTS]
        card = render_card(
            suite.name,
            artifact,
            measured,
            recipe=network.recipe(next(iter(suite.heads)), per_task=per_task),
            precision=str(dtype).removeprefix("torch."),
            files=[file.relative_to(room).as_posix() for file in files],
            base=Path(network.source).name if Path(network.source).is_absolute() else network.source,
            notes=suite.notes,
        )
        write(room / CARD, lambda file: file.write(encoded(card)))
        names = [file.relative_to(room) for file in [*files, room / CARD]]
    return [folder / name for name in names]


if __name__ == "__main__":
    sys.exit(main())
