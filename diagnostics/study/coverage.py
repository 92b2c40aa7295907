"""Simulation studies: ``python -m diagnostics.study coverage [--draws 2000] [--out table.csv]``.

Every statement must hold, and every mutant of it must be caught, on finite populations whose risks are exact
(docs/theory.md section 10). A statement fails if the one-sided 95 % lower limit of its violation rate exceeds
delta; a mutant is caught if its lower limit does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from bounds.validation import check_count
from diagnostics.study.certificates import coefficient_rows, held_out_rows
from diagnostics.study.means import count_rows, mean_rows
from diagnostics.study.merging import theorem_rows
from diagnostics.study.population import population_rows
from diagnostics.study.rows import Row, as_csv
from diagnostics.study.single import evalue_rows, flatness_rows
from merging.commands import console, one_line, run, track
from merging.files import check_folder, write

EXPERIMENTS: tuple[Callable[[np.random.Generator, int], list[Row]], ...] = (
    flatness_rows,
    evalue_rows,
    theorem_rows,
    held_out_rows,
    coefficient_rows,
    count_rows,
    mean_rows,
    population_rows,
)
_NAME = "mergebound study"


def coverage(draws: int = 2000, seed: int = 0) -> list[Row]:
    """Run every experiment.

    Args:
        draws: samples per setting.
        seed: of the samples; each experiment has its own stream.

    Returns:
        The table's rows.

    Raises:
        InputError: fewer than one draw.

    Source: docs/theory.md section 10.
    """
    check_count(draws, "draws")
    streams = np.random.SeedSequence(seed).spawn(len(EXPERIMENTS))
    pairs = list(zip(EXPERIMENTS, streams, strict=True))
    steps = track(pairs, f"experiments, {draws} draws each")
    return [row for make, stream in steps for row in make(np.random.default_rng(stream), draws)]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="Coverage and power: violation rates (e-values: means), one-sided 95 % limits")
    table.add_column("setting")
    for name in ("claim", "variant", "must", "rate", "limits", "against", "passed"):
        table.add_column(name)
    for row in rows:
        must = "hold" if row.kind == "statement" else "be caught"
        limits = f"{row.lower:.3g} .. {row.upper:.3g}"
        numbers = (f"{row.rate:.3g}", limits, f"{row.limit:g}")
        table.add_row(row.setting, row.claim, row.variant, must, *numbers, "yes" if row.passed else "NO")
    console.print(table)


@dataclass(frozen=True)
class Coverage:
    """Check that statements hold and mutants are caught; exit with 1 if any does not."""

    draws: int = 2000
    """Samples per setting."""
    out: Path | None = None
    """Write the table here as comma-separated text."""
    seed: int = 0
    """Seed of the samples."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study from the command line; return the exit status (2 for bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    with one_line(_NAME):
        command = tyro.extras.subcommand_cli_from_dict({"coverage": Coverage}, args=arguments, prog=_NAME)
    if command.out is not None:
        check_folder(command.out.parent, "output", [command.out.name], parents=True)
    rows = coverage(command.draws, command.seed)
    if command.out is not None:
        text = as_csv(rows).encode()
        command.out.parent.mkdir(parents=True, exist_ok=True)
        write(command.out, lambda file: file.write(text))
    show(rows, console())
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
