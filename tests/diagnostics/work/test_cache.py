import pytest
import torch

from bounds.types import Estimate
from diagnostics.work.cache import Cache, digest, digest_params
from diagnostics.work.workers import each


def test_a_digest_changes_with_every_part():
    base = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(1.5)},
        {"c": torch.zeros(2, 3), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3).double(), "b": torch.tensor(1.0)},
    ]
    assert digest_params(base) == digest_params({k: v.clone() for k, v in base.items()})
    assert len({digest_params(p) for p in [base, *others]}) == 5
    assert digest(1, "a") != digest(1, "b")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_data_is_made_once_and_made_again_when_its_file_is_damaged(tmp_path):
    cache, made = Cache(tmp_path / "cache"), []

    def make():
        made.append(1)
        return Estimate(0.5, 0.1, 3, "estimated")

    for _ in range(2):
        assert cache.data(Estimate, "x", "key", make) == Estimate(0.5, 0.1, 3, "estimated")
    assert len(made) == 1
    cache.data(Estimate, "x", "other key", make)
    assert len(made) == 2
    path = tmp_path / "cache" / "x-key.json"
    path.write_text(path.read_text()[:-5])
    assert cache.data(Estimate, "x", "key", make).n == 3
    assert len(made) == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_tensors_come_back_and_damage_counts_as_absent(tmp_path):
    cache = Cache(tmp_path)
    cache.save("t", "key", {"x": torch.arange(3), "n": 2, "rows": [torch.ones(1)]})
    found = cache.load("t", "key")
    assert found is not None
    assert torch.equal(found["x"], torch.arange(3))
    assert found["n"] == 2
    path = tmp_path / "t-key.pt"
    path.write_bytes(path.read_bytes()[:40])
    assert cache.load("t", "key") is None
    assert Cache(None).load("t", "key") is None


@pytest.mark.parametrize("workers", [1, 3])
def test_each_keeps_the_order_and_inherits_what_it_needs(workers):
    offset = torch.tensor(10)
    results = list(each(lambda i: {"value": offset + i}, [3, 1, 2, 0], workers=workers))
    assert [int(r["value"]) for r in results] == [13, 11, 12, 10]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_passes_errors_on(workers):
    def fail(item):
        if item == 1:
            raise ValueError("one")
        return item

    with pytest.raises(ValueError, match="one"):
        list(each(fail, [0, 1, 2], workers=workers))
