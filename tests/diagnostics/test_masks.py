"""Attention masks: a small BERT gives the same numbers with a mask [N, L], with the equal [N, 1, L, L], with none."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bounds import ntk
from bounds.autodiff import functional
from bounds.types import Sample, take
from diagnostics.sections.table import serving
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import Task, TaskVectors, merge
from merging.suites import Suite

LENGTH, WIDTH, CLASSES, TASKS = 5, 8, 3, 2
SIZES = {"train": 6, "calibration": 4, "validation": 6, "test": 6}
SMALL = Settings(held_out=4, kernel=4, train=4, draws=4, points=3, control_points=2, resamples=10, gibbs_draws=1)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "gauss_newton": {"examples": 4, "iterations": 3},
    "tangent": {"examples": 4},
    "fisher": {"examples": 4},
    "samerging": {"examples": 4, "batch": 4, "steps": 2},
}
"""Methods that differentiate, with settings for a second."""


class Classifier(nn.Module):
    """A BERT of two layers whose first token is scored by a head of the task."""

    def __init__(self, bert: BertModel, head: Tensor) -> None:
        super().__init__()
        self.bert = bert
        self.register_buffer("head", head)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.bert(**inputs).last_hidden_state[:, 0] @ self.head


def masked(mask: Tensor, how: str) -> dict[str, Tensor]:
    """The input that says which tokens are there, [N, L] of 1 and 0."""
    if how == "none":
        return {}
    return {"attention_mask": mask if how == "2-D" else mask.bool()[:, None, None].expand(-1, 1, LENGTH, -1)}


@lru_cache
def world(how: str, padded: bool) -> Suite:
    """Two tasks on one BERT in float64; where ``padded``, examples have 2 to 5 tokens, else 5."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    config = BertConfig(
        vocab_size=20, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    bert = BertModel(config, add_pooling_layer=False).double().eval()
    tasks = []
    params: Mapping[str, Tensor] = {}
    for name in ("one", "two"):
        forward, params = functional(Classifier(bert, normal(WIDTH, CLASSES)))
        samples = {}
        for split, size in SIZES.items():
            tokens = torch.randint(0, 20, (size, LENGTH), generator=generator)
            lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=generator)
            mask = (torch.arange(LENGTH) < (lengths if padded else LENGTH)).long().expand(size, LENGTH)
            labels = torch.randint(0, CLASSES, (size,), generator=generator)
            inputs = {"input_ids": tokens, **masked(mask, how)}
            samples[split] = Sample(inputs, None if split == "calibration" else labels)
        tasks.append(Task(name, forward, [f"class {c}" for c in range(CLASSES)], **samples))
    base = {name: 0.8 * normal(*value.shape) for name, value in params.items()}
    deltas = [{name: 0.1 * normal(*value.shape) for name, value in base.items()} for _ in tasks]
    return Suite("masks", TaskVectors(base, deltas, [task.name for task in tasks]), tasks)


def same(left: Any, right: Any, where: str) -> None:
    """Compare numbers within 1e-5, relative and absolute, everything else for equality."""
    if dataclasses.is_dataclass(left) and not isinstance(left, type):
        for field in dataclasses.fields(left):
            same(getattr(left, field.name), getattr(right, field.name), f"{where}.{field.name}")
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys(), where
        for key in left:
            same(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, Tensor):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5, equal_nan=True)
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            same(*pair, f"{where}[{index}]")
    elif isinstance(left, float):
        assert right == pytest.approx(left, rel=1e-5, abs=1e-5, nan_ok=True), where
    else:
        assert left == right, where


@lru_cache
def merged(how: str, padded: bool, method: str):
    suite = world(how, padded)
    return merge(method, suite.task_vectors, suite.tasks, suite="masks", **SETTINGS[method])


@lru_cache
def space(how: str, padded: bool) -> Workspace:
    artifact = merged("2-D", padded, "samerging")  # the same merge: its own numbers are compared by another test
    return Workspace([Subject("0", "0.pt", artifact)], lambda: world(how, padded), SMALL, Cache(None))


OTHERS = [("4-D", True), ("none", False)]
"""What a 2-D mask is compared with, where some tokens are absent and where none are."""


@pytest.mark.parametrize(("how", "padded"), OTHERS)
@pytest.mark.parametrize("name", serving("example"))
def test_sections_of_a_report(name, how, padded):
    first, second = space("2-D", padded), space(how, padded)
    section = serving("example")[name]
    same(section.compute(first, first.subjects[0]), section.compute(second, second.subjects[0]), name)


@pytest.mark.parametrize(("how", "padded"), OTHERS)
@pytest.mark.parametrize("method", SETTINGS)
def test_merges(method, how, padded):
    same(merged("2-D", padded, method).merged, merged(how, padded, method).merged, method)


@pytest.mark.parametrize(("how", "padded"), OTHERS)
@pytest.mark.parametrize("method", ["exact", "hutchinson", "hutch++"])
@pytest.mark.parametrize("budget", [1, 10**8])
def test_traces_of_the_kernel(method, how, padded, budget):
    traces = []
    for kind in ("2-D", how):
        suite = world(kind, padded)
        task, generator = suite.tasks[0], torch.Generator().manual_seed(0)
        inputs = take(task.test.inputs, slice(0, 3))
        options: dict[str, Any] = {"method": method, "probes": 6, "generator": generator, "budget_bytes": budget}
        traces.append(ntk.trace(task.forward, suite.task_vectors.base, inputs, vectorize=True, **options))
    same(traces[0], traces[1], method)


def test_masks_matter():
    """The padded world and the whole one differ, or the tests above would pass without masks."""
    left, right = (world("2-D", padded).tasks[0] for padded in (True, False))
    base = world("2-D", True).task_vectors.base
    scores = [task.forward(base, take(task.test.inputs, slice(0, 6))) for task in (left, right)]
    assert float((scores[0] - scores[1]).abs().max()) > 1e-2
