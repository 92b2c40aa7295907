"""Where a report computes: a suite moved to a device of PyTorch."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bounds.types import Params, Sample
from merging.suites import Suite
from merging.task_vectors import TaskVectors


def moved(suite: Suite, device: str) -> Suite:
    """Return the suite with weights and examples on a device; heads follow the weights."""

    def params(values: Params) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in values.items()}

    def sample(s: Sample) -> Sample:
        inputs = s.inputs.to(device) if isinstance(s.inputs, Tensor) else {k: v.to(device) for k, v in s.inputs.items()}
        return Sample(inputs, None if s.labels is None else s.labels.to(device))

    vectors = suite.task_vectors
    return replace(
        suite,
        task_vectors=TaskVectors(params(vectors.base), [params(d) for d in vectors.deltas], vectors.names),
        tasks=[task.changed(**{split: sample(getattr(task, split)) for split in task.splits}) for task in suite.tasks],
    )
