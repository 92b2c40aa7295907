import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, contract, merged
from merging.params import combine, norm, partition, squared_norms, subtract


def vectors(seed: int = 0, tasks: int = 3) -> TaskVectors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"stem.weight": (3, 2), "layers.0.weight": (2, 2, 2), "layers.0.bias": (2,), "top": ()}

    def draw() -> dict[str, torch.Tensor]:
        return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}

    return TaskVectors(draw(), [draw() for _ in range(tasks)], [f"t{i}" for i in range(tasks)])


@pytest.mark.parametrize("granularity", ["task", "block", "tensor"])
def test_merged_is_the_sum_written_out(granularity):
    tv = vectors()
    blocks = partition(tv.base, granularity)
    coefficients = torch.randn(3, len(blocks), dtype=torch.float64)
    result = merged(tv, coefficients, blocks)
    for column, names in enumerate(blocks.values()):
        for name in names:
            expected = tv.base[name].clone()
            for t in range(3):
                expected = expected + coefficients[t, column] * tv.deltas[t][name]
            assert torch.allclose(result[name], expected, atol=1e-14)


def test_contract_is_the_adjoint_of_merged():
    tv = vectors()
    blocks = partition(tv.base, "block")
    coefficients = torch.randn(3, len(blocks), dtype=torch.float64)
    gradient = {k: torch.randn_like(v) for k, v in tv.base.items()}
    shifted = subtract(merged(tv, coefficients, blocks), tv.base)
    left = sum(float((gradient[k] * shifted[k]).sum()) for k in tv.base)
    assert left == pytest.approx(float((contract(tv, gradient, blocks) * coefficients).sum()), rel=1e-12)


def test_one_column_is_task_wise_and_one_per_tensor_is_tensor_wise():
    tv = vectors()
    task_wise = merged(tv, torch.full((3, 1), 0.5, dtype=torch.float64))
    tensor_wise = merged(tv, torch.full((3, len(tv.base)), 0.5, dtype=torch.float64))
    assert all(torch.equal(task_wise[k], tensor_wise[k]) for k in tv.base)


def test_expert_is_recovered_and_half_precision_does_not_lose_the_task_vector():
    base = {"w": torch.full((4,), 1.0, dtype=torch.float16)}
    expert = {"w": torch.full((4,), 1.0 + 2**-10, dtype=torch.float16)}
    tv = TaskVectors.from_experts(base, {"a": expert})
    assert tv.stacked["w"].dtype == torch.float32
    assert torch.equal(tv.stacked["w"][0], torch.full((4,), 2**-10))


def test_blocks_group_layers_in_order():
    tv = vectors()
    assert dict(partition(tv.base, "block")) == {
        "stem": ("stem.weight",),
        "layers.0": ("layers.0.weight", "layers.0.bias"),
        "top": ("top",),
    }
    assert list(partition({"visual.transformer.resblocks.11.ln_1.weight": torch.zeros(1)}, "block")) == [
        "visual.transformer.resblocks.11"
    ]


def test_norms():
    params = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert norm(params) == pytest.approx(5)
    assert squared_norms(params, {"x": ("a",), "y": ("b",)}) == {"x": 9.0, "y": 16.0}
    assert combine(params, {"a": torch.tensor([1.0])}, 2.0)["a"].item() == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("top"), "missing"),
        (lambda d: d.update(extra=torch.zeros(1)), "unexpected"),
        (lambda d: d.update(top=torch.zeros(2)), r"\(2,\)"),
        (lambda d: d.update(top=torch.tensor(float("nan"))), "nan"),
        (lambda d: d.update(top=torch.tensor(1)), "int64"),
    ],
)
def test_bad_task_vectors_are_refused(change, message):
    tv = vectors()
    delta = dict(tv.deltas[0])
    change(delta)
    with pytest.raises(InputError, match=message):
        TaskVectors(tv.base, [delta], ["a"])


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (3,)])
def test_bad_coefficients_are_refused(shape):
    with pytest.raises(InputError, match="coefficients"):
        merged(vectors(), torch.zeros(shape))
    with pytest.raises(InputError, match="finite"):
        merged(vectors(), torch.full((3, 1), float("inf")))


def test_bad_blocks_and_names_are_refused():
    tv = vectors()
    with pytest.raises(InputError, match="every parameter exactly once"):
        merged(tv, torch.zeros(3, 1), {"model": ("top",)})
    with pytest.raises(InputError, match="granularity"):
        partition(tv.base, "neuron")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="distinct"):
        TaskVectors(tv.base, tv.deltas, ["a", "a", "b"])


def test_the_order_of_an_experts_tensors_does_not_matter():
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    expert = {"b": torch.arange(3.0), "a": torch.arange(2.0)}
    found = TaskVectors.from_experts(base, {"one": expert})
    assert list(found.base) == list(found.deltas[0]) == ["a", "b"]
    assert torch.equal(found.expert(0)["b"], expert["b"])
    assert torch.equal(TaskVectors(base, [expert], ["one"]).expert(0)["a"], expert["a"])


@pytest.mark.parametrize(
    "names",
    [
        ("q.lora_A.default.weight", "q.lora_B.default.weight"),
        ("lora_te.lora_down.weight", "lora_te.lora_up.weight"),
        ("e.lora_embedding_A", "e.lora_embedding_B"),
        ("q.hada_w1_a", "q.hada_w1_b"),
        ("q.weight.up", "q.weight.down"),
    ],
)
def test_low_rank_factors_are_refused(names):
    theta = {name: torch.ones(2, 2) for name in names}
    for make in (lambda: TaskVectors.from_experts(theta, {"a": theta}), lambda: TaskVectors(theta, [theta], ["a"])):
        with pytest.raises(InputError, match=r"2 low-rank factors such as .*multiply them out"):
            make()


def test_names_that_only_look_like_factors_are_whole_weights():
    names = ("mlp.up.weight", "mlp.down.weight", "layers.0.up", "explorer_A.weight", "lora_router.weight")
    theta = {name: torch.ones(2, 2) for name in names}
    assert len(TaskVectors.from_experts(theta, {"a": theta})) == 1


def test_weights_of_a_block_reach_the_product_as_neighbours(monkeypatch):
    """BLAS has no fast path for a vector with gaps, which a column of λ [T, L] is."""
    tv, real, strides = vectors(), torch.addmv, []
    blocks = partition(tv.base, "tensor")

    def addmv(base, columns, weights, *, out):
        strides.append(weights.stride())
        return real(base, columns, weights, out=out)

    monkeypatch.setattr(torch, "addmv", addmv)
    merged(tv, torch.rand(3, len(blocks), dtype=torch.float64), blocks, out={})
    assert strides == [(1,)] * len(blocks)
