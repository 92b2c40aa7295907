"""``python -m merging --method samerging --suite mini8 --out out.pt``: merge a suite's experts, write the artifact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from bounds.types import refuse
from merging import suites
from merging.artifact import MergeArtifact, check_destination, save
from merging.commands import console, run, track
from merging.evaluation import accuracy_table, evaluate
from merging.methods import METHODS, merge, method_settings
from merging.suites import Suite


@dataclass(frozen=True)
class Command:
    """Merge the experts of a suite and write an artifact that ``python -m diagnostics.bound_report`` reads."""

    method: str = "samerging"
    """Row of the table of methods: average, task_arithmetic, samerging, gauss_newton, tangent. Its options follow."""
    suite: str = "mini8"
    """Where experts and tasks come from: mini8 (shipped) or toy."""
    out: Path = Path("out.pt")
    """The artifact to write."""
    threads: int = 1
    """Threads of PyTorch. The shipped suites are small and run fastest on one; large models want every core."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    command, settings = _parse(arguments)
    method_settings(command.method)
    check_destination(command.out)
    if command.threads < 1:
        refuse("threads", expected="at least 1", got=command.threads, cure="raise it")
    torch.set_num_threads(command.threads)
    suite = suites.load(command.suite)
    artifact = merge(
        command.method,
        suite.task_vectors,
        suite.tasks,
        suite=suite.name,
        sources=suite.sources,
        progress=track,
        **settings,
    )
    save(artifact, command.out)
    _print_table(suite, artifact, command.out)


def _parse(arguments: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """Parse the options of the command and those of the chosen method (which --help therefore shows)."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default=Command.method)
    method = first.parse_known_args(list(arguments))[0].method
    settings = method_settings(method)
    if METHODS[method].settings.__dataclass_fields__:
        whole = make_dataclass(
            "Whole",
            [
                ("command", Annotated[Command, tyro.conf.arg(name="")]),
                ("settings", Annotated[settings, tyro.conf.arg(name="")]),
            ],
        )
        parsed: Any = tyro.cli(whole, args=arguments, prog="python -m merging", description=Command.__doc__)
        return parsed.command, asdict(parsed.settings)
    return tyro.cli(Command, args=arguments, prog="python -m merging", description=Command.__doc__), {}


def _print_table(suite: Suite, artifact: MergeArtifact, out: Path) -> None:
    rows, _ = evaluate(suite, artifact.merged, track)
    output = console()
    output.print(accuracy_table(rows, f"{artifact.method} on {suite.name}"))
    output.print(f"{out}: merged in {artifact.seconds:.1f} s with {_shown(artifact)}", soft_wrap=True, highlight=False)


def _shown(artifact: MergeArtifact) -> str:
    parts = [f"{key}={value}" for key, value in artifact.settings.items() if value is not None]
    if artifact.coefficients is not None and artifact.coefficients.unique().numel() == 1:
        parts.append(f"every coefficient {float(artifact.coefficients.flatten()[0]):.4g}")
    norms = artifact.history.get("perturbation_norm", [])
    if norms and artifact.settings.get("perturbation") != "none":
        zero = sum(norm == 0 for norm in norms)
        parts.append(f"(perturbation exactly 0 in {zero} of {len(norms)} steps)" if zero else "(perturbation never 0)")
    return " ".join(parts) or "no settings"


if __name__ == "__main__":
    sys.exit(main())
