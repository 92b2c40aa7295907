import pytest
import torch

from merging.commands import expert_scores as module
from merging.commands.expert_scores import expert_scores
from merging.suites import toy
from merging.task import score_task


def same(task):
    return task


@pytest.fixture
def suite():
    return toy.build()


def test_scores_are_those_of_each_expert_on_its_own_test_split(suite, tmp_path):
    for folder in (None, tmp_path, tmp_path):
        found = expert_scores(suite, same, "cpu", folder)
        for index, (task, taught) in enumerate(zip(suite.tasks, found, strict=True)):
            direct = score_task(task, suite.task_vectors.expert(index), task.test.inputs, "test", "expert")
            assert torch.equal(taught.scores, direct)
            assert taught.positions is None


def test_kept_scores_are_read_and_not_made_again(suite, tmp_path, monkeypatch):
    first = expert_scores(suite, same, "cpu", tmp_path)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(module, "_scored", never)
    second = expert_scores(suite, same, "cpu", tmp_path)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(first, second, strict=True))
    with pytest.raises(AssertionError):
        expert_scores(suite, same, "cuda", tmp_path)


@pytest.mark.parametrize("at", ["header", "last byte", "length"])
def test_damaged_scores_are_made_again(suite, tmp_path, at):
    first = expert_scores(suite, same, "cpu", tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    data = bytearray(whole)
    data[3 if at == "header" else -1] ^= 64
    path.write_bytes(whole[:-5] if at == "length" else bytes(data))
    second = expert_scores(suite, same, "cpu", tmp_path)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(first, second, strict=True))
    assert path.stat().st_size == len(whole)


def test_scores_of_another_suite_are_not_taken(suite, tmp_path):
    expert_scores(suite, same, "cpu", tmp_path)
    (path,) = tmp_path.iterdir()
    other = toy.build(seed=1)
    assert other.identity != suite.identity
    found = expert_scores(other, same, "cpu", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    (new,) = (p for p in tmp_path.iterdir() if p != path)
    new.write_bytes(path.read_bytes())
    again = expert_scores(other, same, "cpu", tmp_path)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(found, again, strict=True))
