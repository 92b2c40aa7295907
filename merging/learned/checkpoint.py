"""Keeping the state of a loop on the disk, and going on from it to the very coefficients of an uninterrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.types import InputError, refuse
from merging import records
from merging.files import check_destination
from merging.learned.loop import State, init, update
from merging.learned.problem import Problem
from merging.params import finite
from merging.plain import checked
from merging.rows import Progress

SCHEMA = "mergebound.checkpoint/2"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The file: a :class:`State`, what it belongs to (see :func:`describe`), the positions chosen, and its schema."""

    schema: str
    merge: dict[str, Any]
    coefficients: Tensor
    optimizer: dict[str, Any]
    generator: Tensor
    memory: dict[str, Tensor]
    history: dict[str, list[float]]
    chosen: list[Tensor]
    steps: int


def learn(problem: Problem, progress: Progress, description: str) -> State:
    """Go from the first step, or from the checkpoint, to the last; keep a checkpoint every so many steps.

    Raises:
        InputError: see :func:`start` and :func:`merging.learned.update`; the message then names the checkpoint.
    """
    state = start(problem, init(problem))
    try:
        for _ in progress(range(state.step, problem.settings.steps), description):
            state = update(problem, state)
            if state.step % problem.execution.every == 0:
                save(problem, state)
    except InputError as error:
        path = problem.execution.checkpoint
        kept = f"; the last good steps are in {path} (--resume)" if path is not None and path.is_file() else ""
        raise InputError(f"{error}{kept}") from error
    return state


def start(problem: Problem, state: State) -> State:
    """Check, before any step, that a checkpoint can be kept; return the state to start from.

    Raises:
        InputError: an earlier run's checkpoint without ``resume``, one of another merge, a file that cannot be written.
    """
    execution = problem.execution
    path = execution.checkpoint
    if path is None:
        if execution.resume:
            refuse("resume", expected="the file of a checkpoint", got="none", cure="name one")
        return state

    def first() -> Checkpoint | InputError | None:
        try:
            check_destination(path, "checkpoint")
            if path.is_file() and not execution.resume:
                refuse(
                    f"checkpoint {path}",
                    expected="none from an earlier run",
                    got="one",
                    cure="add --resume to go on from it, or delete it",
                )
            return read(path, problem) if path.is_file() else None
        except InputError as error:
            return error

    content = execution.processes.broadcast(first() if execution.processes.rank == 0 else None)
    if isinstance(content, InputError):
        raise content
    return state if content is None else _restore(state, content)


def save(problem: Problem, state: State) -> None:
    """Write the checkpoint, atomically (the first process does).

    Raises:
        InputError: a disk that refuses the bytes.
    """
    path = problem.execution.checkpoint
    if path is None or problem.execution.processes.rank != 0:
        return
    kept = Checkpoint(
        schema=SCHEMA,
        merge=describe(problem),
        coefficients=state.coefficients.detach(),
        optimizer=state.optimizer.state_dict(),
        generator=state.generator.get_state(),
        memory=state.memory,
        history=state.history,
        chosen=list(problem.chosen),
        steps=state.step,
    )
    records.save(path, {field.name: getattr(kept, field.name) for field in fields(kept)}, "checkpoint")


def describe(problem: Problem) -> dict[str, Any]:
    """Return what must agree for a run to go on: settings, tasks, blocks, precision.

    The number of steps only where the learning rate follows it: a run may be given more.
    """
    settings = asdict(problem.settings)
    if problem.settings.schedule == "constant":
        del settings["steps"]
    vectors = problem.task_vectors
    return {
        "settings": settings,
        "tasks": list(vectors.names),
        "blocks": {block: list(names) for block, names in problem.blocks.items()},
        "storage": str(next(iter(vectors.stacked.values())).dtype),
        "autocast": problem.execution.autocast,
    }


def read(path: Path, problem: Problem) -> Checkpoint:
    """Read a checkpoint, executing nothing, and check that it is whole and belongs to this merge.

    Raises:
        InputError: a damaged, changed or foreign file, or another merge.
    """
    what, cure = f"checkpoint {path}", "delete it to start again"
    content = checked(Checkpoint, records.load(path, SCHEMA, what, cure), what, cure)
    here = describe(problem)
    different = [key for key, value in here.items() if content.merge.get(key) != value]
    if different:
        refuse(
            f"{what}, {different[0]}",
            expected=here[different[0]],
            got=content.merge.get(different[0]),
            cure="use the settings it was made with, or delete it",
        )
    if len(content.chosen) != len(problem.chosen) or not all(map(torch.equal, content.chosen, problem.chosen)):
        refuse(f"{what}, calibration", expected="the same examples", got="others", cure="use the same data and seed")
    _check(content, init(problem), what, cure)
    return content


def _check(content: Checkpoint, state: State, what: str, cure: str) -> None:
    """Check a checkpoint against a fresh state, which is used up: same shapes, numbers that are finite, whole lists.

    Raises:
        InputError: the file fits its digest, but no run of this merge has written it.
    """
    lam, generator = state.coefficients, state.generator.get_state()
    for name, found, like in (
        ("coefficients", content.coefficients, lam),
        ("generator", content.generator, generator),
    ):
        if found.shape != like.shape or found.dtype != like.dtype:
            expected, got = f"{like.dtype} {list(like.shape)}", f"{found.dtype} {list(found.shape)}"
            refuse(f"{what}, {name}", expected=expected, got=got, cure=cure)
    lengths = {name: len(values) for name, values in content.history.items()}
    if lengths != dict.fromkeys(state.history, content.steps):
        refuse(f"{what}, history", expected=f"{content.steps} steps of {list(state.history)}", got=lengths, cure=cure)
    lam.grad = torch.zeros_like(lam)
    state.optimizer.step()  # from then on an optimiser has all that it keeps
    if _layout(content.optimizer) != _layout(state.optimizer.state_dict()):
        expected = f"the state of {type(state.optimizer).__name__}"
        refuse(f"{what}, optimizer", expected=expected, got="another", cure=cure)
    tensors = {"coefficients": content.coefficients, **content.memory, **content.optimizer["state"][0]}
    for name, value in tensors.items():
        if not finite(value):
            refuse(f"{what}, {name}", expected="finite numbers", got="nan or inf", cure=cure)


def _layout(value: Any) -> Any:
    """Return a value with every tensor replaced by its dtype and shape, and every other value by its type."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    if isinstance(value, Mapping):
        return {key: _layout(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_layout(part) for part in value]
    return type(value)


def _restore(state: State, content: Checkpoint) -> State:
    with torch.no_grad():
        state.coefficients.copy_(content.coefficients)
    state.optimizer.load_state_dict(content.optimizer)
    state.generator.set_state(content.generator)
    state.memory.update(content.memory)
    state.history.clear()
    state.history.update(content.history)
    return state
