"""Keeping the state of a loop on the disk, and going on from it to the very coefficients of an uninterrupted run."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bounds.types import InputError, refuse
from merging.files import check_destination, write
from merging.learned.loop import State, init, update
from merging.learned.problem import Problem
from merging.rows import Progress

SCHEMA = "mergebound.checkpoint/1"


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

    def first() -> dict[str, Any] | InputError | None:
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
    content = {
        "schema": SCHEMA,
        "merge": describe(problem),
        "coefficients": state.coefficients.detach(),
        "optimizer": state.optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "memory": state.memory,
        "history": state.history,
        "chosen": list(problem.chosen),
        "steps": state.step,
    }
    write(path, lambda file: torch.save(content, file), "checkpoint")


def describe(problem: Problem) -> dict[str, Any]:
    """Return what must agree for a run to go on: settings (without the number of steps), tasks, blocks, precision."""
    settings = {key: value for key, value in asdict(problem.settings).items() if key != "steps"}
    vectors = problem.task_vectors
    return {
        "settings": settings,
        "tasks": list(vectors.names),
        "blocks": {block: list(names) for block, names in problem.blocks.items()},
        "storage": str(next(iter(vectors.stacked.values())).dtype),
        "autocast": problem.execution.autocast,
    }


def read(path: Path, problem: Problem) -> dict[str, Any]:
    """Read a checkpoint, executing nothing, and check that it belongs to this merge.

    Raises:
        InputError: a damaged or foreign file, or another merge.
    """
    what, cure = f"checkpoint {path}", "delete it to start again"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        refuse(what, expected="a complete checkpoint", got=str(error).splitlines()[0][:120], cure=cure)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        refuse(what, expected=f"schema {SCHEMA}", got="another file", cure=cure)
    here = describe(problem)
    different = [key for key, value in here.items() if content["merge"].get(key) != value]
    if different:
        refuse(
            f"{what}, {different[0]}",
            expected=here[different[0]],
            got=content["merge"].get(different[0]),
            cure="use the settings it was made with, or delete it",
        )
    if not all(map(torch.equal, content["chosen"], problem.chosen)):
        refuse(f"{what}, calibration", expected="the same examples", got="others", cure="use the same data and seed")
    return content


def _restore(state: State, content: dict[str, Any]) -> State:
    with torch.no_grad():
        state.coefficients.copy_(content["coefficients"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.generator.set_state(content["generator"])
    state.memory.update(content["memory"])
    state.history.clear()
    state.history.update(content["history"])
    return state
