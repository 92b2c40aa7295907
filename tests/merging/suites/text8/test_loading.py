"""What the loader makes of files, beyond what the builds' tests look at."""

from dataclasses import replace

import pytest
import torch

from bounds.types import InputError
from merging.suites.text8 import build as building
from merging.suites.text8.loading import WEIGHTS, load, read_examples, zero_shot_head
from merging.suites.text8.network import build
from merging.suites.text8.stored import read_rounded
from merging.task_vectors import Storage
from tests.text8_world import TASKS, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    chosen = settings(tmp_path_factory.mktemp("built"))
    building.build(replace(chosen, training=replace(chosen.training, epochs=1)), TASKS)
    return chosen.out


def test_the_head_is_the_names_by_theta_0(folder):
    suite = load(folder)
    encoder = build(read_rounded(folder / WEIGHTS), 3)
    for task in suite.tasks:
        splits, names = read_examples(folder / f"{task.name}.npz")
        head = zero_shot_head(encoder, names)
        assert head.shape == (len(task.class_names), 24)
        torch.testing.assert_close(head.norm(dim=1), torch.ones(len(head)))
        with torch.no_grad():
            expected = 20 * encoder(splits["test"].inputs) @ head.T
            torch.testing.assert_close(task.forward(suite.task_vectors.base, task.test.inputs), expected)


def test_storage_is_that_of_the_task_vectors(folder):
    suite = load(folder, Storage(dtype=torch.bfloat16))
    assert all(value.dtype == torch.bfloat16 for value in suite.task_vectors.stacked.values())


def test_a_changed_file_is_refused(folder):
    path = folder / "expert_colour.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    try:
        with pytest.raises(
            InputError, match=r"^suite text8, expert_colour.safetensors: expected sha256 \w{12}…; got \w{12}; build"
        ):
            load(folder)
    finally:
        path.write_bytes(whole)
