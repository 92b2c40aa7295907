"""``mergebound edit out.pt --without TASK --out edited.pt``: change a merge that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from merging import suites
from merging.artifact import load, save
from merging.commands.evaluation import accuracy_table, evaluate
from merging.commands.options import options
from merging.commands.terminal import console, plain, run, track
from merging.editing import Edit, edited, looked_at
from merging.files import check_destination, check_outputs


@dataclass(frozen=True, kw_only=True)
class Command:
    """Change a merge and write it as an artifact of its own: without experts, scaled, with tensors back at θ_0.

    A method in closed form merges the other experts again with the recorded settings and scale; of a merge by learned
    coefficients those of the experts are dropped. All tasks stay.
    """

    merged: Annotated[Path, tyro.conf.Positional]
    """The artifact made by mergebound merge."""
    out: Path
    """The artifact to write."""
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave out the expert of this task. May be repeated."""
    scale: float = 1.0
    """Multiply θ_m - θ_0 by this number."""
    base: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Put these tensors back to the pretrained ones, by pattern (encoder.*). May be repeated."""
    candidates: int = 1
    """How many merges were compared on the validation labels before this one was chosen: certificates pay for them."""
    suite: str | None = None
    """Where the suite is now (default: where the artifact says it was)."""
    table: bool = True
    """Score the test splits of the pretrained model, the experts and the merge at the end, and print the table."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(options(Command, arguments, "mergebound edit")))


def _main(command: Command) -> None:
    torch.set_num_threads(1)
    check_destination(command.out, "--out")
    check_outputs({"--out": command.out}, {"the merge": command.merged})
    artifact, edit = load(command.merged), Edit(command.without, command.scale, command.base)
    suite = suites.load(command.suite or artifact.origin or artifact.suite)
    changed = looked_at(edited(artifact, suite, edit, track), command.candidates)
    save(changed, command.out)
    output = console()
    if command.table:
        title = f"{changed.label}, edited, on {suite.name}"
        output.print(accuracy_table(evaluate(suite, changed.merged, track)[0], title))
    output.print(plain(f"{command.out}: {command.merged}, {_shown(edit)}"), soft_wrap=True)


def _shown(edit: Edit) -> str:
    parts = [f"without {name}" for name in edit.without]
    parts += [f"scaled by {edit.scale:g}"] if edit.scale != 1 else []
    parts += [f"{pattern} back at θ_0" for pattern in edit.base]
    return ", ".join(parts) or "nothing changed"
