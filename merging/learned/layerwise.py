"""Distillation layer by layer: each layer of the merge learns the outputs of the experts' layer.

Where a layer's output is found: a ``Forward`` is opaque, but one made by ``bounds.autodiff.functional`` runs its module
with the very tensors it was given as parameters. A forward hook on all modules therefore recognises the layer by the
identity of its tensors, hands its output out and ends the pass there (later layers are not run). The layers are the
blocks of ``merging.params.partition`` that are modules. A function without modules, or a block that no module's call
computes, has no such place and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bounds.autodiff import check_inputs
from bounds.types import Forward, Inputs, Params, leaves, refuse, take
from merging.learned.combination import BY_BLOCK
from merging.learned.loop import first, init, learned, update
from merging.learned.objectives import Objective
from merging.learned.problem import Problem, prepare
from merging.learned.settings_rows import ProDistillSettings
from merging.params import OUTSIDE, partition
from merging.rows import Merge, Progress
from merging.task import Task, check_tasks, check_unmasked, score
from merging.task_vectors import TaskVectors, merged


class _Reached(Exception):
    """Ends a forward pass at the layer whose output it carries."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def layer_output(forward: Forward, names: Sequence[str]) -> Forward:
    """Return the function (θ, x [N, ...]) -> output of the layer whose tensors are ``names``, flattened to [N, D].

    The layer is the innermost module that holds exactly these tensors; of several outputs the first is taken. Exact.

    Raises:
        InputError: (when called) no module holds exactly these tensors, or its output's first axis is not the example.
    """

    def output(params: Params, inputs: Inputs) -> Tensor:
        wanted = {id(params[name]) for name in names}

        def hook(module: nn.Module, arguments: object, result: Tensor | tuple[Tensor, ...]) -> None:
            if {id(p) for p in module.parameters()} == wanted:
                raise _Reached(result if isinstance(result, Tensor) else result[0])

        handle = register_module_forward_hook(hook)
        try:
            forward(params, inputs)
        except _Reached as reached:
            if len(reached.output) != len(leaves(inputs)[0]):
                refuse("layer output", expected="the example as first axis", got=list(reached.output.shape), cure=_CURE)
            return reached.output.flatten(start_dim=1)
        finally:
            handle.remove()
        return refuse("layer", expected=f"a module that holds exactly {list(names)[:2]}, ...", got="none", cure=_CURE)

    return output


_CURE = "use a model of torch modules with the batch first (bounds.autodiff.functional), or another method"


def find_layers(params: Params) -> Mapping[str, Sequence[str]]:
    """Return layer -> names of its tensors, in order: the blocks of :func:`merging.params.partition` without its rest.

    Raises:
        InputError: a model whose names spell no modules to go through one after the other.
    """
    layers = {block: names for block, names in partition(params, "block").items() if block not in OUTSIDE}
    if not layers:
        refuse("model", expected="layers: modules such as layers.0", got=f"tensors {list(params)[:3]}", cure=_CURE)
    return layers


def prodistill(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: ProDistillSettings, progress: Progress
) -> Merge:
    """Distil layer after layer, each with its own optimiser: min over λ^l of the mean ‖h_l(merge) - h_l(expert t)‖².

    The merged layer is fed by the merged layers before it, the expert's by the expert's. Tensors outside the layers
    keep the initial coefficient. With the granularity ``entry`` λ^l has one number per entry of each task vector, and
    the merge carries no coefficients. Source: Xu et al. 2025, arXiv 2502.12706, and its released code.
    """
    layers = find_layers(task_vectors.base)
    check_tasks(task_vectors.names, tasks)
    check_unmasked(tasks, "layer-by-layer distillation")
    problem = prepare(task_vectors, tasks, settings)
    columns = {block: column for column, block in enumerate(problem.blocks)}
    coefficients = torch.full((len(task_vectors), len(columns)), first(problem), dtype=task_vectors.dtype)
    params = merged(task_vectors, coefficients, problem.blocks)
    history: dict[str, list[float]] = {}
    steps = iter(progress(range(len(layers) * settings.steps), "learning layer by layer"))
    for names in layers.values():
        part = _stage(problem, names, params)
        state = init(part)
        for _ in range(settings.steps):
            next(steps)
            update(part, state)
        params |= part.combination.merged(part.task_vectors, learned(state), part.blocks, {})
        if part.combination is BY_BLOCK:
            coefficients[:, [columns[block] for block in part.blocks]] = learned(state)
        _append(history, state.history)
    next(steps, None)
    if problem.combination is BY_BLOCK:
        return Merge(params=params, coefficients=coefficients, blocks=problem.blocks, history=history)
    return Merge(params=params, history=history)


def _append(history: dict[str, list[float]], more: Mapping[str, list[float]]) -> None:
    """Add a stage's history; ``passes`` counts from the first stage on."""
    before = history["passes"][-1] if history else 0
    for name, values in more.items():
        history.setdefault(name, []).extend(value + before if name == "passes" else value for value in values)


def _stage(problem: Problem, names: Sequence[str], fixed: Params) -> Problem:
    """Return the problem of one layer: its tensors alone vary, all others are ``fixed``; scores are its outputs."""
    vectors, outputs = problem.task_vectors, [layer_output(forward, names) for forward in problem.forwards]
    for forward, inputs in zip(outputs, problem.inputs, strict=True):
        for count in (1, 2):  # the example is the first axis for every number of examples, not by coincidence
            forward(fixed, take(inputs, slice(0, count)))

    def varying(forward: Forward) -> Forward:
        return lambda params, inputs: forward({**fixed, **params}, inputs)

    return replace(
        problem,
        objective=_over_the_same_positions(problem.objective),
        task_vectors=TaskVectors.from_stacked(
            {name: vectors.base[name] for name in names}, {name: vectors.stacked[name] for name in names}, vectors.names
        ),
        blocks={
            block: kept
            for block, members in problem.blocks.items()
            if (kept := tuple(name for name in members if name in names))
        },
        forwards=[varying(forward) for forward in outputs],
        teacher_scores=[
            _taught(forward, vectors.expert(index), inputs, f"layer outputs of task {vectors.names[index]!r}")
            for index, (forward, inputs) in enumerate(zip(outputs, problem.inputs, strict=True))
        ],
        positions=(),  # the layers' outputs are compared as they are, all positions of an example together
        theta={},
    )


def _taught(forward: Forward, expert: Params, inputs: Inputs, what: str) -> Tensor:
    """Return the layer's outputs [N, D] under an expert, of all examples in one pass.

    A network that cuts texts to the longest of a batch then gives every batch of them the first positions of what it
    gives all.

    Raises:
        InputError: an example's output depends on those beside it in another way.
    """
    whole = score(forward, expert, inputs, what=what, batch_size=check_inputs(inputs))
    for count in (1, 2):
        alone = forward(expert, take(inputs, slice(0, count)))
        beside = whole[: len(alone), : alone.shape[1]]
        if alone.shape != beside.shape or not torch.allclose(alone, beside, rtol=1e-2, atol=1e-3 * float(whole.std())):
            got = f"{list(alone.shape[1:])} numbers that are not the first of {list(whole.shape[1:])}"
            refuse(what, expected="the same for an example alone and among others", got=got, cure=_CURE)
    return whole


def _over_the_same_positions(objective: Objective) -> Objective:
    """Return the objective on as many numbers of the expert's output as the batch has (see :func:`_taught`)."""
    return lambda student, teacher, temperature: objective(student, teacher[:, : student.shape[1]], temperature)
