"""Task vectors that are formed when they are used: the same merges, the same refusals, nothing kept."""

import pytest
import torch
from safetensors.torch import save_file

from bounds.types import InputError
from merging import TaskVectors, contract, merge, merged
from merging.checkpoints import map_safetensors, read_safetensors
from merging.params import finite, partition
from merging.task_vectors.arithmetic import PART

SHAPES = {"odd": (7,), "weight": (3, PART // 2 + 11), "scalar": (), "top": (5, 3)}


def draw(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def experts(count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    return {f"t{i}": draw(i + 1, dtype) for i in range(count)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_they_are_those_in_memory_bit_for_bit(dtype):
    base, given = draw(0, dtype), experts(dtype=dtype)
    kept, formed = TaskVectors.from_experts(base, given), TaskVectors.on_demand(base, given)
    for name in SHAPES:
        assert formed.stacked[name].dtype == kept.stacked[name].dtype
        assert torch.equal(formed.stacked[name], kept.stacked[name])
        assert all(torch.equal(a[name], b[name]) for a, b in zip(formed.deltas, kept.deltas, strict=True))
        assert torch.equal(formed.kept().stacked[name], kept.stacked[name])
    blocks, coefficients = partition(base, "tensor"), torch.randn(3, len(SHAPES), dtype=kept.dtype)
    left, right = (merged(tv, coefficients, blocks, out={}) for tv in (formed, kept))
    assert all(torch.equal(left[name], right[name]) for name in SHAPES)
    assert torch.equal(contract(formed, left, blocks), contract(kept, left, blocks))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "consensus", "pcb", "magnitude"])
def test_rows_that_go_by_parts_give_the_same_bits(method, tmp_path):
    save_file(draw(0), tmp_path / "base.safetensors")
    for name, params in experts().items():
        save_file(params, tmp_path / f"{name}.safetensors")
    base = map_safetensors(tmp_path / "base.safetensors")
    given = {f"t{i}": map_safetensors(tmp_path / f"t{i}.safetensors") for i in range(3)}
    formed, kept = TaskVectors.on_demand(base, given), TaskVectors.from_experts(base, given)
    left, right = (merge(method, vectors, (), scale=0.3).merged for vectors in (formed, kept))
    assert all(torch.equal(left[name], right[name]) for name in SHAPES)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_average_is_the_mean_of_the_experts_in_the_merge_s_precision(dtype, count):
    base, given = draw(0, dtype), experts(count, dtype)
    found = merge("average", TaskVectors.on_demand(base, given), ()).merged
    kept = merge("average", TaskVectors.from_experts(base, given), ()).merged
    for name in SHAPES:
        exact = torch.stack([params[name].double() for params in given.values()]).mean(dim=0)
        largest = max(float(params[name].double().abs().max()) for params in (base, *given.values()))
        step = largest * torch.finfo(kept[name].dtype).eps
        assert found[name].dtype == kept[name].dtype == torch.promote_types(dtype, torch.float32)
        assert float((found[name] - exact).abs().max()) <= (count + 1) * step, "a rounding for each expert"
        assert float((found[name] - kept[name]).abs().max()) <= (2 * count + 3) * step


def test_nothing_is_formed_to_learn_which_parameters_there_are(monkeypatch):
    vectors = TaskVectors.on_demand(draw(0), experts())
    monkeypatch.setattr("merging.task_vectors.on_demand.difference", lambda *_: pytest.fail("formed"))
    for names in (vectors.stacked, *vectors.deltas):
        assert "odd" in names
        assert "even" not in names
        assert list(names) == list(SHAPES)


def test_the_average_of_the_largest_numbers_is_finite():
    largest = torch.full((5,), torch.finfo(torch.float32).max)  # the sum of six rounded sixths of it overflows
    vectors = TaskVectors.on_demand({"w": largest}, {f"t{i}": {"w": largest} for i in range(6)})
    assert torch.allclose(merge("average", vectors, ()).merged["w"], largest)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(value):
    given = experts()
    given["t1"]["weight"][-1, -1] = value
    vectors = TaskVectors.on_demand(draw(0), given)
    for use in (
        lambda: merged(vectors, torch.zeros(3, 1), out={}),
        lambda: merge("average", vectors, ()),
        lambda: vectors.stacked["weight"],
        vectors.kept,
    ):
        with pytest.raises(InputError, match="expert 't1' weight: expected finite numbers"):
            use()
    with pytest.raises(InputError, match="expert 't1' weight: expected finite numbers"):
        TaskVectors.from_experts(draw(0), given)


def test_finite_numbers_whose_sum_or_difference_overflows():
    huge = torch.full((8,), 3e38)
    assert finite(huge), "the sum overflows, the numbers do not"
    assert not finite(torch.tensor([3e38, 3e38, float("nan")]))
    assert not finite(torch.tensor([float("inf"), -float("inf")]))
    kept = TaskVectors.from_experts({"w": torch.zeros(8)}, {"a": {"w": huge}})
    assert torch.equal(kept.stacked["w"][0], huge)
    with pytest.raises(InputError, match=r"expected numbers within the range of torch.float32; got an overflow"):
        TaskVectors.from_experts({"w": -huge}, {"a": {"w": huge}})


def test_a_file_is_mapped_without_being_read(tmp_path):
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "w.safetensors")
    assert map_safetensors(tmp_path / "w.safetensors")["w"].isnan().any()
    with pytest.raises(InputError, match="finite"):
        read_safetensors(tmp_path / "w.safetensors")
