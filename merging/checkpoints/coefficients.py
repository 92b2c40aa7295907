"""FusionBench's ``merging_weights.pt``: coefficients λ as a bare tensor, one column per trainable parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bounds.types import Blocks, refuse
from merging.checkpoints.formats import check_file
from merging.files import write
from merging.params import finite
from merging.records import DAMAGE


def write_coefficients(path: Path, coefficients: Tensor, blocks: Blocks, names: Sequence[str]) -> None:
    """Write λ as FusionBench's layer-wise models read it: float32 [T, L], columns in the order of ``names``.

    Args:
        path: where; it is written whole or not at all.
        coefficients: λ [T, B], one column per block.
        blocks: block -> names of its tensors, in the order of the columns.
        names: the L trainable tensors in the order of the model's ``named_parameters()``, tied ones once. Tensors of
            the blocks that are no parameters (running statistics) are left out by not being named.

    Raises:
        InputError: shapes that do not agree, or names that no block holds, or that are named twice.
    """
    what = f"coefficients {path}"
    if coefficients.ndim != 2 or coefficients.shape[1] != len(blocks):
        expected = f"shape [tasks, {len(blocks)}], one column per block"
        refuse(what, expected=expected, got=list(coefficients.shape), cure="pass the blocks of these coefficients")
    column = {name: index for index, members in enumerate(blocks.values()) for name in members}
    unknown = [name for name in names if name not in column]
    if unknown or len(set(names)) < len(names) or not names:
        got = f"no coefficient for {', '.join(unknown[:3])}" if unknown else "repeated names" if names else "no names"
        refuse(what, expected="names of merged tensors", got=got, cure="pass the model's named_parameters(), in order")
    expanded = coefficients.detach().cpu()[:, [column[name] for name in names]].float().contiguous()
    write(path, lambda file: torch.save(expanded, file), "coefficients")


def read_coefficients(path: Path, names: Sequence[str], tasks: int) -> tuple[Tensor, Blocks]:
    """Read λ that FusionBench saved, without clamping it (its models clamp to [0, 1] by default when they merge).

    Args:
        path: the file: a tensor [T, L], or [T] of a task-wise model.
        names: the L trainable tensors in the order of the model's ``named_parameters()``, tied ones once.
        tasks: T. Rows are in the order in which FusionBench was given the experts; the file does not name them.

    Returns:
        λ [T, L] in float32 with one block per tensor, or [T, 1] with one block.

    Raises:
        InputError: a damaged file, something else than such a tensor, another number of rows or columns, or numbers
            that are not finite.
    """
    what = f"coefficients {path}"
    check_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:120]
        refuse(what, expected="a tensor that torch.save wrote", got=got, cure="copy the file again")
    if not isinstance(found, Tensor) or found.ndim not in (1, 2) or not found.is_floating_point():
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        refuse(
            what, expected="a tensor [T, L] of merging weights", got=got, cure="use FusionBench's merging_weights.pt"
        )
    if len(found) != tasks or (found.ndim == 2 and found.shape[1] != len(names)):
        expected = f"[{tasks}, {len(names)}]: {tasks} tasks, {len(names)} trainable tensors"
        cure = "use the file of this architecture and these tasks"
        refuse(what, expected=expected, got=list(found.shape), cure=cure)
    if not finite(found):
        refuse(what, expected="finite numbers", got="nan or inf", cure="check the run that wrote it")
    blocks = {name: (name,) for name in names} if found.ndim == 2 else {"model": tuple(names)}
    return found.detach().float().reshape(tasks, -1), blocks
