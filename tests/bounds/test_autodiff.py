import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bounds import autodiff
from bounds.autodiff import jvp, vmap_or_loop, without_jit_warning
from bounds.types import InputError
from tests import oracles
from tests.tolerances import assert_near


def fused_attention_allowed() -> tuple[bool, bool, bool]:
    return (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    )


def test_differentiable_sets_and_restores_everything_when_nested_and_on_error():
    before = fused_attention_allowed()
    with torch.autocast("cpu", torch.bfloat16):
        with autodiff.differentiable():
            with autodiff.differentiable():
                assert fused_attention_allowed() == (False, False, False)
            assert fused_attention_allowed() == (False, False, False)
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
        assert fused_attention_allowed() == before
    with pytest.raises(RuntimeError, match="inside"), autodiff.differentiable():
        raise RuntimeError("inside")
    assert fused_attention_allowed() == before
    assert not torch.is_autocast_enabled("cpu")


def test_differentiable_leaves_a_fast_path_that_was_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with autodiff.differentiable():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", oracles.MODELS)
def test_functional_shares_memory_and_follows_the_parameters(name):
    forward, params, inputs = oracles.MODELS[name]()
    scores = forward(params, inputs)
    assert scores.shape == (len(inputs), oracles.CLASSES)
    moved = {key: value + 0.1 for key, value in params.items()}
    assert not torch.allclose(forward(moved, inputs), scores)
    assert torch.equal(forward(params, inputs), scores)


def test_functional_runs_in_evaluation_mode_and_restores_training():
    module: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
    module[2].eval()
    forward, params = autodiff.functional(module)
    inputs = torch.randn(6, 3)
    assert torch.equal(forward(params, inputs), forward(params, inputs))
    assert module[1].num_batches_tracked == 0
    assert [part.training for part in module] == [True, True, False]
    assert params["0.weight"].data_ptr() == module[0].weight.data_ptr()
    assert not params["0.weight"].requires_grad


def test_functional_restores_training_when_the_module_raises():
    module = nn.Linear(3, 4)
    forward, params = autodiff.functional(module)
    with pytest.raises(RuntimeError):
        forward(params, torch.randn(2, 5))
    assert module.training


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(self.first(inputs))


def test_tied_weights_appear_once_and_move_together():
    forward, params = autodiff.functional(Tied())
    assert list(params) == ["first.weight"]
    doubled = {"first.weight": 2 * params["first.weight"]}
    inputs = torch.randn(2, 3)
    torch.testing.assert_close(forward(doubled, inputs), 4 * forward(params, inputs))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, *, left, right):
        return self.layer(left - right)


def test_mapping_inputs_become_keywords():
    module = Named()
    forward, params = autodiff.functional(module)
    inputs = {"left": torch.randn(4, 3), "right": torch.randn(4, 3)}
    torch.testing.assert_close(forward(params, inputs), module(**inputs))
    assert [len(batch["left"]) for batch in autodiff.batches(inputs, 3) if isinstance(batch, dict)] == [3, 1]


def test_refuses_missing_and_extra_parameters():
    forward, params, inputs = oracles.mlp()
    partial = dict(list(params.items())[1:])
    with pytest.raises(InputError, match="1 missing"):
        forward(partial, inputs)
    with pytest.raises(InputError, match="1 extra"):
        forward({**params, "ghost": torch.zeros(1)}, inputs)


@pytest.mark.parametrize("flag", ["grad_checkpointing", "gradient_checkpointing"])
def test_refuses_gradient_checkpointing_before_and_after_wrapping(flag):
    module = nn.Sequential(nn.Linear(3, 2))
    forward, params = autodiff.functional(module)
    setattr(module[0], flag, True)
    with pytest.raises(InputError, match="gradient checkpointing"):
        autodiff.functional(module)
    with pytest.raises(InputError, match="gradient checkpointing"):
        forward(params, torch.randn(1, 3))


@pytest.mark.parametrize(
    "apply",
    [lambda m, x: {"logits": m(x)}, lambda m, x: m(x)[0], lambda m, x: m(x)[:1], lambda m, x: m(x).argmax(1, True)],
)
def test_refuses_scores_of_another_kind(apply):
    forward, params = autodiff.functional(nn.Linear(3, 2), apply)
    with pytest.raises(InputError, match="scores"):
        forward(params, torch.randn(4, 3))


def test_memory_budget_prefers_argument_then_environment(monkeypatch):
    monkeypatch.delenv(autodiff.MEMORY_VARIABLE, raising=False)
    assert autodiff.memory_budget() == 2**30
    monkeypatch.setenv(autodiff.MEMORY_VARIABLE, "12345")
    assert autodiff.memory_budget() == 12345
    assert autodiff.memory_budget(99) == 99
    for bad in ("1 GiB", "0", "-3", ""):
        monkeypatch.setenv(autodiff.MEMORY_VARIABLE, bad)
        with pytest.raises(InputError, match="memory budget"):
            autodiff.memory_budget()
    with pytest.raises(InputError):
        autodiff.memory_budget(0)


def test_chunk_size_is_what_fits_and_at_least_one():
    assert autodiff.chunk_size(10, 35) == 3
    assert autodiff.chunk_size(100, 35) == 1
    assert autodiff.chunk_size(0, 35) == 35


def test_batches_cover_everything_once_with_a_remainder():
    inputs = torch.arange(7)
    got = list(autodiff.batches(inputs, 3))
    assert [len(batch) for batch in got] == [3, 3, 1]
    assert torch.equal(torch.cat([batch for batch in got if isinstance(batch, torch.Tensor)]), inputs)
    with pytest.raises(InputError, match="batch size"):
        list(autodiff.batches(inputs, 0))
    for empty in (torch.empty(0, 3), {}, {"a": torch.zeros(2), "b": torch.zeros(3)}):
        with pytest.raises(InputError, match="inputs"):
            list(autodiff.batches(empty, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_check_params_refuses_values_that_are_not_finite(bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        autodiff.check_params({"a": torch.tensor([1.0, bad])})


def test_check_params_refuses_other_layouts():
    like = {"a": torch.zeros(2), "b": torch.zeros(3)}
    autodiff.check_params({"b": torch.ones(3), "a": torch.ones(2)}, like)
    for params, match in [
        ({}, "none"),
        ({"a": torch.zeros(2)}, "1 missing"),
        ({**like, "c": torch.zeros(1)}, "1 extra"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(3)}, r"\[2, 1\]"),
        ({"a": torch.zeros(2).double(), "b": torch.zeros(3)}, "float64"),
        ({"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(3)}, "int64"),
    ]:
        with pytest.raises(InputError, match=match):
            autodiff.check_params(params, like)


def test_check_displacement_allows_missing_names_only():
    like = {"a": torch.zeros(2), "b": torch.zeros(3)}
    autodiff.check_displacement({"b": torch.ones(3)}, like)
    for displacement in ({"c": torch.ones(3)}, {"b": torch.ones(2)}, {"b": torch.full((3,), math.nan)}):
        with pytest.raises(InputError):
            autodiff.check_displacement(displacement, like)


def test_blocks_must_be_a_partition():
    params = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert autodiff.check_blocks(params, None) == {"model": ("a", "b")}
    assert autodiff.check_blocks(params, {"x": ["b"], "y": ["a"]}) == {"x": ("b",), "y": ("a",)}
    for blocks, match in [
        ({"x": ["a"]}, "missing"),
        ({"x": ["a", "b"], "y": ["a"]}, "repeated"),
        ({"x": ["a", "b", "c"]}, "unknown"),
    ]:
        with pytest.raises(InputError, match=match):
            autodiff.check_blocks(params, blocks)


def test_a_function_that_branches_on_its_data_is_looped_over_and_others_are_not():
    calls = []

    def branching(x, y):
        calls.append(1)
        return {"sum": x["a"] + y, "sign": -x["a"] if bool((x["a"] > 0).all()) else x["a"]}

    x, y = {"a": torch.randn(4, 3)}, torch.randn(4, 3)
    found = vmap_or_loop(branching, x, y)
    assert len(calls) == 1 + 4
    assert torch.equal(found["sum"], x["a"] + y)
    assert torch.equal(found["sign"], torch.stack([branching({"a": v}, v)["sign"] for v in x["a"]]))
    calls.clear()
    assert torch.equal(vmap_or_loop(lambda v: calls.append(1) or v.sum(), y), y.sum(1))
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="size of tensor"):
        vmap_or_loop(lambda v: v + torch.zeros(2), y)


class Largest(TorchDispatchMode):
    """Notes the most bytes that a tensor made while it is entered takes, what it is cut out of included."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def cut_out_of(room):
    """Two parameters in one storage, as in a mapped file."""
    return {"first": room[7:27].view(4, 5), "second": room[100:110].view(5, 2)}


def upstream(function, params, tangents):
    return torch.func.jvp(function, (params,), (tangents,))


@pytest.mark.parametrize(("derivative", "large"), [(jvp, False), (upstream, True)])
def test_a_tangent_takes_no_more_memory_than_its_parameter(derivative, large):
    """PyTorch's own takes the whole storage for each parameter: of a mapped ViT-B/32, 152 times the file."""
    generator = torch.Generator().manual_seed(0)
    room, x = torch.randn(10_000, generator=generator), torch.randn(3, 4, generator=generator)
    params = cut_out_of(room)
    tangents = {name: torch.randn(value.shape, generator=generator) for name, value in params.items()}

    def function(p):
        return torch.tanh(x @ p["first"]) @ p["second"]

    with autodiff.differentiable(), Largest() as seen:
        scores, along = derivative(function, params, tangents)
    assert (seen.bytes == room.nbytes) is large
    whole = upstream(function, {name: value.clone() for name, value in params.items()}, tangents)
    assert torch.equal(scores, whole[0])
    assert torch.equal(along, whole[1])


def test_a_derivative_within_other_transforms_is_the_same():
    """There parameters are wrapped and say nothing of their storage."""
    params = cut_out_of(torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def inner(derivative, p):
        return derivative(lambda q: (q["first"] @ q["second"]).square().sum(), p, p)[1]

    for transform in (torch.func.grad, lambda f: torch.vmap(f, in_dims=({"first": 0, "second": None},))):
        with without_jit_warning():  # of torch's own jvp, on its first use
            found, expected = (transform(lambda p, d=d: inner(d, p))(params) for d in (jvp, upstream))
        for left, right in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert_near(left, right)


def test_scores_at_every_position_are_asked_for():
    module = torch.nn.Linear(3, 5)
    forward, params = autodiff.functional(module, per_position=True)
    assert forward(params, torch.randn(2, 4, 3)).shape == (2, 4, 5)
    with pytest.raises(InputError, match=r"expected a float tensor \[2, L, V\]; got .*one row of scores per position"):
        forward(params, torch.randn(2, 3))
    with pytest.raises(InputError, match=r"expected a float tensor \[2, C\]"):
        autodiff.functional(module)[0](params, torch.randn(2, 4, 3))
