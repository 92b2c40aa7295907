"""``python -m merging --method samerging --suite mini8 --out out.pt``: merge a suite's experts, write the artifact.

``python -m merging list`` prints the table of methods, ``compare`` runs many on one suite, ``suite`` makes one's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from bounds.types import meant, refuse
from merging import presets, suites
from merging.artifact import MergeArtifact, save
from merging.commands import compare, convert, edit, listing, reproduce
from merging.commands import suite as suite_command
from merging.commands.evaluation import accuracy_table, evaluate
from merging.commands.options import hiding, one_line, options
from merging.commands.terminal import console, plain, run, stage, track
from merging.editing import looked_at
from merging.execution import Autocast, Execution
from merging.files import check_destination, check_outputs, place
from merging.learned import DECIDING, PER_POSITION, idle
from merging.methods import find, merge, specification
from merging.processes import local_device, processes
from merging.rows import silent
from merging.selection import Selection, Statistics
from merging.suites import Suite
from merging.task_vectors import Storage


@dataclass(frozen=True, kw_only=True)
class Command:
    """Merge the experts of a suite and write an artifact that ``mergebound report`` reads.

    Options follow the method, and some the value of another one: ``--method ties --help`` and ``--perturbation look
    --help`` show them. ``mergebound --help`` lists all commands.
    """

    method: str = "samerging"
    """Row of the table of methods (mergebound list), and what follows it, with settings of its own: tsv_m+svc,
    ties+lines:rise=0.5. The options below follow the method."""
    preset: str | None = None
    """Named settings of the method; options given explicitly override them. samerging: released (the published code,
    whose SAM never acts; 1000 steps) or paper (the same with a SAM that acts); adamerging: paper."""
    suite: str = "mini8"
    """Experts and tasks: mini8, text8, toy, a suite file .yaml, clip-ta8 and the like, or package.module:function."""
    out: Path = Path("out.pt")
    """The artifact to write."""
    threads: int = 1
    """Threads of PyTorch. The shipped suites are small and run fastest on one; large models want every core."""
    storage: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of stored task vectors; by default the experts' own, at least float32. Sums are taken in float32."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Merge these tensors only, by pattern (encoder.*); all others stay the pretrained ones. May be repeated."""
    excluding: Annotated[tuple[str, ...], tyro.conf.arg(name="except"), tyro.conf.UseAppendAction] = ()
    """Leave these tensors at the pretrained ones, by pattern (*embeddings*). May be repeated."""
    running_statistics: Statistics = "average"
    """Of normalisation layers that keep them: the experts' mean, the base model's, estimated again on the calibration
    splits (REPAIR), or merged by the method like weights."""
    candidates: int = 1
    """How many merges were compared on the validation labels before this one was chosen: certificates pay for them."""
    table: bool = True
    """Score the test splits of the pretrained model, the experts and the merge at the end, and print the table."""
    mapped: Path | None = None
    """Write the task vectors to this file once and map it, instead of holding them in memory."""


@dataclass(frozen=True, kw_only=True)
class Learning(Command):
    """The options of the command with a method that takes passes through the networks."""

    device: str = "cpu"
    """Where the network's passes run: cpu, cuda (under torchrun one for each process of a machine) or cuda:N."""
    autocast: Autocast = "none"
    """Precision of the network's passes: none (the weights' own), bfloat16 or float16."""
    checkpoint_every: int = 10
    """Learned methods keep their progress in OUT.checkpoint every so many steps, until the artifact is written."""
    resume: bool = False
    """Go on from OUT.checkpoint, if it is there, to the very coefficients of an uninterrupted run."""
    sharded: bool = False
    """Under torchrun, each process reads its part of the task vectors only: for many experts, see docs/engine.md."""


_NAME = "mergebound merge"
SUBCOMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "list": listing.main,
    "compare": compare.main,
    "suite": suite_command.main,
    "convert": convert.main,
    "edit": edit.main,
    "reproduce": reproduce.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in SUBCOMMANDS:
        return SUBCOMMANDS[arguments[0]](arguments[1:])
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        expected = f"{' or '.join(SUBCOMMANDS)}, or options of a merge"
        cure = meant(arguments[0], SUBCOMMANDS, "see mergebound --help")
        refuse("command", expected=expected, got=repr(arguments[0]), cure=cure)
    command, settings = _parse(arguments)
    check_destination(command.out, "--out")
    checkpoint = None
    if isinstance(command, Learning):
        checkpoint = place(command.out.with_name(f"{command.out.name}.checkpoint"))
    check_outputs({"--out": command.out, "--mapped": command.mapped, "checkpoint": checkpoint})
    if command.threads < 1:
        refuse("threads", expected="at least 1", got=command.threads, cure="raise it")
    torch.set_num_threads(command.threads)
    with processes() as together:
        execution = Execution(processes=together)
        if isinstance(command, Learning):
            execution = Execution(
                device=local_device(command.device),
                autocast=command.autocast,
                processes=together,
                checkpoint=checkpoint,
                every=command.checkpoint_every,
                resume=command.resume,
                sharded=command.sharded,
            )
        with stage(f"loading {command.suite}") if together.rank == 0 else nullcontext():
            suite = together.in_turn(lambda: suites.load(command.suite, _storage(command)))
        _check_read(suite, arguments)
        artifact = merge(
            specification(command.method).named,
            suite,
            selection=Selection(command.only, command.excluding, command.running_statistics),
            progress=track if together.rank == 0 else silent,
            execution=execution,
            **settings,
        )
        if together.rank != 0:
            return
        artifact = looked_at(artifact, command.candidates)
        save(artifact, command.out)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        _tell(suite, artifact, command)


def _storage(command: Command) -> Storage:
    return Storage(None if command.storage is None else getattr(torch, command.storage), command.mapped)


def _parse(arguments: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """Parse the options of the command and those of the chosen method: --help shows those that act."""
    given = _given(arguments, {"method": Command.method, "preset": None})
    read = specification(given["method"])
    row, preset = find(read.method), presets.find(read.method, given["preset"])
    settings = row.settings(**{**preset.settings, **read.given})
    unused = _idle(settings, arguments)
    kind = Learning if row.executes else Command
    if read.method not in presets.PRESETS:
        kind = hiding(kind, ["preset"])
    if not settings.__dataclass_fields__:
        return options(kind, arguments, _NAME), {}
    shown = hiding(row.settings, unused)
    whole = make_dataclass(
        "Whole",
        [
            ("command", Annotated[kind, tyro.conf.arg(name="")]),
            ("settings", Annotated[shown, tyro.conf.arg(name="")], field(default=shown(**asdict(settings)))),
        ],
        namespace={"__doc__": Command.__doc__},
    )
    parsed: Any = options(whole, arguments, _NAME)
    return parsed.command, asdict(parsed.settings)


def _given(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read a few options before the others."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in defaults.items():
        first.add_argument(f"--{name}", default=default)
    with one_line(_NAME):
        return vars(first.parse_known_args(list(arguments))[0])


def _idle(settings: Any, arguments: Sequence[str]) -> list[str]:
    """Return the settings that nothing reads with these arguments.

    Raises:
        InputError: one of them is among the arguments, or a value that is unknown.
    """
    names = [name for name in DECIDING if name in settings.__dataclass_fields__]
    chosen = replace(settings, **_given(arguments, {name: getattr(settings, name) for name in names}))
    found = idle(chosen)
    written = _written(arguments)
    for name, by in found.items():
        if name in written:
            expected = f"a value of --{by} that reads it"
            got, cure = f"--{by} {getattr(chosen, by)}", f"remove it, or choose another --{by}"
            refuse(f"--{name.replace('_', '-')}", expected=expected, got=got, cure=cure)
    return list(found)


def _written(arguments: Sequence[str]) -> set[str]:
    """Return the names of the options among the arguments."""
    return {text.partition("=")[0].removeprefix("--").replace("-", "_") for text in arguments if text[:2] == "--"}


def _check_read(suite: Suite, arguments: Sequence[str]) -> None:
    """Check that no option was written that tasks of this kind do not read.

    Raises:
        InputError: one of PER_POSITION, and the suite has one row of scores for an example.
    """
    for name in PER_POSITION:
        if name in _written(arguments) and not suite.per_position:
            expected = "a suite whose tasks have scores at every position, which alone read it"
            refuse(f"--{name.replace('_', '-')}", expected=expected, got=suite.name, cure="remove it")


def _tell(suite: Suite, artifact: MergeArtifact, command: Command) -> None:
    output = console()
    if command.table and suite.unlabelled_tasks:
        said = f"no labels of the test split in {', '.join(suite.unlabelled_tasks)}: no table of accuracies"
        output.print(plain(f"{said}; mergebound report says what is known without labels"), soft_wrap=True)
    elif command.table:
        output.print(accuracy_table(evaluate(suite, artifact.merged, track)[0], f"{artifact.label} on {suite.name}"))
    for name, said in suite.notes.items():
        output.print(plain(f"{name}: {said}"), soft_wrap=True)
    note = presets.find(artifact.method, command.preset).note
    if note:
        output.print(f"preset {command.preset}: {note}", soft_wrap=True, highlight=False)
    output.print(plain(f"{command.out}: merged in {artifact.seconds:.1f} s with {_shown(artifact)}"), soft_wrap=True)


def _shown(artifact: MergeArtifact) -> str:
    parts = [f"{key}={value}" for key, value in artifact.all_settings.items() if value is not None]
    if artifact.coefficients is not None and artifact.coefficients.unique().numel() == 1:
        parts.append(f"every coefficient {float(artifact.coefficients.flatten()[0]):.4g}")
    elif "chosen_scale" in artifact.history:
        parts.append(f"scale {artifact.history['chosen_scale'][0]:.4g} chosen on validation")
    norms = artifact.history.get("perturbation_norm", [])
    if norms and artifact.settings.get("perturbation") != "none":
        zero = sum(norm == 0 for norm in norms)
        parts.append(f"(perturbation exactly 0 in {zero} of {len(norms)} steps)" if zero else "(perturbation never 0)")
    if any(sent := artifact.history.get("bytes_sent", [])):
        parts.append(f"({sum(sent) / len(sent):.0f} bytes sent by each process in a step)")
    return " ".join(parts) or "no settings"


if __name__ == "__main__":
    sys.exit(main())
