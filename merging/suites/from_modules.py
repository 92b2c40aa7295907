"""A suite from torch modules: a base, experts of its architecture, and their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bounds.autodiff import Apply, functional
from bounds.running_statistics import entries
from bounds.types import Forward, Inputs, Params, Sample, refuse
from merging.data import from_dataset, prepared
from merging.params import widened
from merging.suites.base import Suite
from merging.task import SPLITS, Task
from merging.task_vectors import Storage, TaskVectors

Split = Sample | tuple[Inputs, Tensor] | Inputs | Dataset[Any]
"""A sample, (inputs, labels), inputs alone, or a data set of pairs (x, y)."""


def suite_from_modules(
    base: nn.Module,
    experts: Mapping[str, nn.Module],
    data: Mapping[str, Mapping[str, Split]],
    *,
    heads: str | Sequence[str] = (),
    class_names: Mapping[str, Sequence[str]] | None = None,
    apply: Apply | None = None,
    name: str = "modules",
    storage: Storage | None = None,
    shared_examples: Literal["refuse", "name"] = "refuse",
) -> Suite:
    """Make a suite of fine-tuned modules.

    A model is its parameters and running statistics (:mod:`bounds.running_statistics`); modules are run in evaluation
    mode and not copied, so do not train them on while the suite is in use.

    Args:
        base: the pretrained network.
        experts: task -> network fine-tuned from it.
        data: task -> split (train, calibration, validation, test) -> a Sample, (inputs, labels), inputs alone, or a
            torch Dataset of pairs (tensor of one shape, class number), which is read into memory.
            ``test`` must be there. Labels of ``calibration`` are dropped.
        heads: patterns of names (``*`` for any text) that are a task's own, such as ``"classifier.*"``: each task keeps
            its expert's, frozen, whatever their number of classes; the base needs none of them.
        class_names: task -> names of its classes; by default the numbers of the scores.
        apply: (module, inputs) -> scores [N, C]; by default ``module(inputs)``, or ``module(**inputs)`` of a mapping,
            and of what these return ``.logits``, where there is one.
        name: of the suite.
        storage: precision and place of the task vectors.
        shared_examples: see :class:`Suite`.

    Raises:
        InputError: experts that do not fit the base, tasks without data, heads that name nothing; what :class:`Task`
            and :class:`Suite` refuse.
    """
    if sorted(experts) != sorted(data):
        refuse("data", expected=f"the experts' tasks {sorted(experts)}", got=sorted(data), cure="give each expert data")
    patterns = (heads,) if isinstance(heads, str) else tuple(heads)
    theta = {key: widened(value) for key, value in entries(base).items() if not _matches(key, patterns)}
    if not theta:
        refuse(
            "heads",
            expected="something beside them to merge",
            got=f"{list(patterns)} names every tensor",
            cure="name less",
        )
    if same := [task for task, expert in experts.items() if expert is base]:
        refuse(
            f"expert {same[0]!r}",
            expected="a network of its own",
            got="the base itself",
            cure="train a copy (deepcopy)",
        )
    run, tasks, weights, learned = apply or _scores, [], {}, set[str]()
    for task, expert in experts.items():
        whole = entries(expert)
        _check_heads(task, whole, patterns)
        _check_buffers(base, expert)
        head = {key: value for key, value in whole.items() if _matches(key, patterns)}
        forward = with_head(expert if head else base, head, run)
        weights[task] = {key: value for key, value in whole.items() if key not in head}
        splits = {split: _sample(task, split, value) for split, value in data[task].items()}
        if "test" not in splits:
            refuse(f"data of task {task!r}", expected="a split test", got=list(splits), cure="give it examples")
        names = (class_names or {}).get(task) or _numbers(forward, theta, splits["test"])
        given: dict[str, Any] = {split: splits.get(split) for split in SPLITS}
        tasks.append(Task(task, forward, names, **given))
        learned |= {task} if head else set()
    vectors = TaskVectors.from_experts(theta, weights, storage)
    return Suite(name, vectors, tasks, shared_examples=shared_examples, learned_heads=frozenset(learned))


def with_head(module: nn.Module, head: Params, apply: Apply) -> Forward:
    """Return (θ, inputs) -> scores of a module whose ``head`` is frozen at these values."""
    forward, _ = functional(module, apply)
    frozen = {name: widened(value.detach()) for name, value in head.items()}  # like θ
    if not frozen:
        return forward

    def headed(params: Params, inputs: Inputs) -> Tensor:
        device = next(iter(params.values())).device
        return forward({**params, **{name: value.to(device) for name, value in frozen.items()}}, inputs)

    return headed


def _scores(module: nn.Module, inputs: Inputs) -> Tensor:
    found: Any = module(inputs) if isinstance(inputs, Tensor) else module(**inputs)
    return found if isinstance(found, Tensor) else found.logits


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_heads(task: str, names: Params, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            cure = f"use the expert's names, such as {list(names)[-1]}"
            refuse(f"heads {pattern!r}", expected=f"names of expert {task!r}", got="none that fits", cure=cure)


def _check_buffers(base: nn.Module, expert: nn.Module) -> None:
    """Refuse buffers that differ and that θ cannot carry (heads apart, whose module is the expert's own)."""
    shared = {name: value for name, value in expert.named_buffers() if name in dict(base.named_buffers())}
    entries(base, {**dict(base.named_parameters(remove_duplicate=False)), **dict(base.named_buffers()), **shared})


def _sample(task: str, split: str, value: Split) -> Sample:
    if split not in SPLITS:
        refuse(f"data of task {task!r}", expected=" or ".join(SPLITS), got=repr(split), cure="name the split so")
    if isinstance(value, Sample):
        sample = value
    elif isinstance(value, tuple):
        sample = Sample(value[0], torch.as_tensor(value[1]))
    elif isinstance(value, Dataset):
        examples = from_dataset(value)
        inputs = prepared(examples.inputs, _stacked, "", None, f"data of task {task!r}, split {split}")
        sample = Sample(inputs, examples.labels)
    else:
        sample = Sample(value)
    return Sample(sample.inputs) if split == "calibration" else sample


def _stacked(examples: Sequence[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(example) for example in examples])


@torch.no_grad()
def _numbers(forward: Forward, theta: Params, test: Sample) -> list[str]:
    return [str(c) for c in range(forward(theta, test.take(slice(1)).inputs).shape[1])]
