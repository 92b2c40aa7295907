"""suite_from_modules against the modules themselves."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from bounds.types import InputError
from merging import merge, suite_from_modules
from merging.task import score_task

SPLITS = {"train": 12, "calibration": 8, "validation": 8, "test": 10}


def bert(classes: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config: Any = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    config.num_labels = classes
    return BertForSequenceClassification(config).eval()


def texts(classes: int, size: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 30, (size, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(2, 7, (size, 1), generator=generator)).long()
    return {"input_ids": tokens, "attention_mask": mask}, torch.randint(0, classes, (size,), generator=generator)


def data(classes: int, seed: int) -> dict[str, Any]:
    return {split: texts(classes, size, 10 * seed + i) for i, (split, size) in enumerate(SPLITS.items())}


def test_heads_of_different_sizes_and_logits():
    experts = {"two": bert(2, 1), "five": bert(5, 2)}
    suite = suite_from_modules(bert(2, 0), experts, {"two": data(2, 1), "five": data(5, 2)}, heads="classifier.*")
    assert not [name for name in suite.task_vectors.base if name.startswith("classifier")]
    for index, (name, module) in enumerate(experts.items()):
        inputs = suite.tasks[index].test.inputs
        ours = score_task(suite.tasks[index], suite.task_vectors.expert(index), inputs, "test", "expert")
        assert isinstance(inputs, dict)
        with torch.no_grad():
            torch.testing.assert_close(ours, module(**inputs).logits, rtol=1e-5, atol=1e-5)
        assert list(suite.tasks[index].class_names) == [str(c) for c in range({"two": 2, "five": 5}[name])]
        assert suite.tasks[index].calibration.labels is None
    assert merge("average", suite).suite == "modules"


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


def numbers(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        split: (torch.randn(size, 3, generator=generator), torch.randint(0, 2, (size,), generator=generator))
        for split, size in SPLITS.items()
    }


def test_splits_may_be_absent():
    only_test = {"test": numbers(1)["test"]}
    suite = suite_from_modules(linear(0), {"a": linear(1)}, {"a": only_test})
    assert suite.tasks[0].splits == ("test",)
    merge("average", suite)
    with pytest.raises(InputError, match=r"method samerging: expected the split calibration.*; got none in task 'a'"):
        merge("samerging", suite)
    with pytest.raises(InputError, match=r"split train of task 'a': expected examples.*; got a task without"):
        _ = suite.tasks[0].train


def test_data_sets_of_pairs_are_read():
    made = numbers(1)
    sets: Any = {split: TensorDataset(*pair) for split, pair in made.items()}
    one, two = (suite_from_modules(linear(0), {"a": linear(1)}, {"a": data}) for data in (made, sets))
    assert one.content == two.content
    assert two.tasks[0].calibration.labels is None


def test_half_precision_modules_run_on_float_inputs():
    halves = {"two": bert(2, 1).half(), "five": bert(5, 2).half()}
    suite = suite_from_modules(bert(2, 0).half(), halves, {"two": data(2, 1), "five": data(5, 2)}, heads="classifier.*")
    for index, task in enumerate(suite.tasks):
        inputs: Any = task.test.inputs
        scores = score_task(task, suite.task_vectors.expert(index), inputs, "test", "expert")
        with torch.no_grad():
            own = halves[task.name].float()(**inputs).logits
        torch.testing.assert_close(scores, own, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    base = linear(0)
    wrong: Any = [
        ((base, {"a": linear(1)}, {"b": numbers(1)}), r"data: expected the experts' tasks \['a'\]"),
        (
            (base, {"a": linear(1)}, {"a": {"tests": numbers(1)["test"]}}),
            r"data of task 'a': expected train.*'tests'",
        ),
        ((base, {"a": linear(1)}, {"a": {"train": numbers(1)["test"]}}), r"expected a split test; got \['train'\]"),
        ((base, {"a": nn.Linear(3, 2)}, {"a": numbers(1)}), r"expert 'a': expected the parameter names of the base"),
    ]
    for arguments, match in wrong:
        with pytest.raises(InputError, match=match):
            suite_from_modules(*arguments)
    with pytest.raises(InputError, match=r"heads 'fc.\*': expected names of expert 'a'; got none that fits; use"):
        suite_from_modules(base, {"a": linear(1)}, {"a": numbers(1)}, heads="fc.*")
    with pytest.raises(InputError, match=r"heads: expected something beside them to merge; got \['\*'\] names every"):
        suite_from_modules(base, {"a": linear(1)}, {"a": numbers(1)}, heads="*")
    with pytest.raises(InputError, match=r"expert 'a': expected a network of its own; got the base itself"):
        suite_from_modules(base, {"a": base}, {"a": numbers(1)})
    experts: Any = linear(0), linear(1)
    for expert, value in zip(experts, (1.0, 2.0), strict=True):
        expert.register_buffer("temperature", torch.tensor(value))
    with pytest.raises(InputError, match=r"buffer temperature: expected one value in every model"):
        suite_from_modules(experts[0], {"a": experts[1]}, {"a": numbers(1)})


def test_inputs_alone_make_a_suite_that_merges_without_labels():
    data: Any = {"a": {"test": torch.zeros(3, 3)}}
    suite = suite_from_modules(linear(0), {"a": linear(1)}, data)
    assert suite.unlabelled_tasks == ("a",)
    assert merge("average", suite).fingerprint is not None
