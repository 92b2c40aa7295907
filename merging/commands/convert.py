"""``mergebound convert FILE --to OUT.safetensors``: any weights as safetensors, running nothing of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from bounds.types import refuse
from merging.checkpoints import Pickled, check_file, read_pickled, read_weights, weight_files
from merging.commands.options import options
from merging.commands.terminal import console, plain, run, stage
from merging.files import check_outputs, replacing

_SHOWN = 20


@dataclass(frozen=True)
class Command:
    """Write the weights of a checkpoint as safetensors.

    Pickled modules (published task-vector checkpoints) are read without running or importing what they name; the
    command prints what loading them would have imported. State dicts, shards and folders are read, too.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A file of torch.save, a safetensors file, the index of shards, or a folder that holds one of them."""
    to: Path
    """The safetensors file to write."""
    prefix: str = ""
    """Keep only the tensors under this prefix, such as model.visual. (with its dot), and take it off their names."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    command = options(Command, arguments, "mergebound convert")
    files = weight_files(command.source)
    check_outputs({"--to": command.to}, {str(file): file for file in files})
    with stage(f"reading {command.source}"):
        read = _read(command.source, files)
    kept = _under(read.state, command.prefix, command.source)
    with stage(f"writing {command.to}"), replacing(command.to, "--to") as temporary:
        save_file(unshared(kept), temporary, {"format": "pt"})
    numbers = sum(value.numel() for value in kept.values())
    left = len(read.state) - len(kept)
    output = console()
    line = f"{command.to}: {len(kept)} tensors, {numbers:,} numbers" + (f"; {left} left out" if left else "")
    output.print(plain(line), soft_wrap=True)
    shown = ", ".join(read.imports[:_SHOWN])
    more = f" and {len(read.imports) - _SHOWN} more" if len(read.imports) > _SHOWN else ""
    output.print(plain(f"{command.source} would have imported: {shown or 'nothing'}{more}"), soft_wrap=True)


def _read(source: Path, files: Sequence[Path]) -> Pickled:
    """Read a file of ``torch.save`` by the restricted reader; all else imports nothing."""
    pickled = len(files) == 1 and check_file(files[0]) != "safetensors"
    return read_pickled(files[0]) if pickled else Pickled(read_weights(source), ())


def _under(state: Mapping[str, Tensor], prefix: str, source: Path) -> dict[str, Tensor]:
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    kept.pop("", None)
    if not kept:
        starts = sorted({name.partition(".")[0] + "." for name in state})
        got = f"names that begin with {', '.join(starts[:5])}"
        refuse(f"--prefix {prefix}", expected=f"the beginning of names in {source}", got=got, cure="choose one of them")
    return kept


def unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory (tied weights are copied), in the order given."""
    result = {name: value.contiguous() for name, value in state.items()}
    end = 0
    for name in sorted(result, key=lambda name: result[name].data_ptr()):
        value = result[name]
        if value.numel() and value.data_ptr() < end:
            result[name] = value.clone(memory_format=torch.contiguous_format)
        end = max(end, value.data_ptr() + value.nbytes)
    return result
