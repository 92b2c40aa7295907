"""Running statistics as entries of θ, against the modules' own scores, finite differences and training mode."""

from typing import Any

import pytest
import torch
from torch import nn

from bounds.autodiff import differentiable, functional
from bounds.running_statistics import entries, is_statistic, reestimated, state
from bounds.types import InputError


def network(seed=0) -> Any:
    """A network with every layer that keeps running statistics, after some training of them."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv1d(3, 4, 2),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.BatchNorm1d(6, affine=False, eps=0.01),
        nn.Linear(6, 3),
    ).double()
    for _ in range(3):
        net(3 * torch.randn(50, 3, 6).double() + 2)
    return net.eval()


def test_statistics_are_entries_and_others_weights_give_the_other_modules_scores():
    base, other = network(0), network(1)
    x = torch.randn(7, 3, 6).double()
    forward, theta = functional(base)
    assert [name for name in theta if is_statistic(name)] == [
        f"{layer}.running_{what}" for layer in (1, 3, 6) for what in ("mean", "log_variance")
    ]
    torch.testing.assert_close(forward(theta, x), base(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forward(functional(other)[1], x), other(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forward(entries(base, other.state_dict()), x), other(x), rtol=1e-12, atol=1e-12)
    mixed = {name: functional(base)[1][name] if is_statistic(name) else v for name, v in entries(other).items()}
    assert float((forward(mixed, x) - other(x)).detach().abs().max()) > 0.01, "they matter"


def test_a_state_dict_comes_back():
    base, other = network(0), network(1)
    restored = state(base, entries(other))
    assert list(restored) == list(base.state_dict())
    for name, value in other.state_dict().items():
        torch.testing.assert_close(restored[name], value, rtol=1e-12, atol=1e-12, check_dtype=True)
    base.load_state_dict(restored)
    with pytest.raises(InputError, match=r"parameters: expected the names of the module.*'0.bias'"):
        state(base, {name: v for name, v in entries(other).items() if name != "0.bias"})


def test_tied_weights_stand_once_and_are_written_twice():
    net: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    assert list(entries(net)) == ["a.weight", "a.bias", "b.bias"]
    moved = {name: value + 1 for name, value in entries(net).items()}
    written = state(net, moved)
    assert torch.equal(written["a.weight"], written["b.weight"])
    assert torch.equal(written["b.weight"], net["a"].weight.detach() + 1)
    for missing in ("a.weight", "b.weight"):  # files hold tied weights under either name
        assert torch.equal(
            entries(net, {n: v for n, v in written.items() if n != missing})["a.weight"], moved["a.weight"]
        )
    with pytest.raises(InputError, match=r"one value: the model ties them; got two"):
        entries(net, {**written, "b.weight": written["b.weight"] + 1})


def test_derivatives_in_every_mode_agree_with_differences():
    base, other = network(0), network(1)
    x, (forward, theta) = torch.randn(5, 3, 6).double(), functional(base)
    direction = {name: value - theta[name] for name, value in entries(other).items()}

    def at(s):
        return forward({name: value + s * direction[name] for name, value in theta.items()}, x)

    step, zero = 1e-5, torch.zeros((), dtype=torch.float64)
    with differentiable():
        exact = torch.func.jvp(at, (zero,), (zero + 1,))[1]
    torch.testing.assert_close(exact, (at(step) - at(-step)) / (2 * step), rtol=1e-6, atol=1e-7)
    gradient = torch.func.grad(lambda params: forward(params, x).sum())(theta)
    along = sum((gradient[name] * direction[name]).sum() for name in theta)
    torch.testing.assert_close(along, exact.sum())
    assert all(float(gradient[name].abs().max()) > 0 for name in theta if is_statistic(name))
    each = torch.func.vmap(lambda one: forward(theta, one[None])[0])(x)
    torch.testing.assert_close(each, forward(theta, x))


def test_statistics_are_estimated_again_as_training_mode_takes_them():
    base = network(0)
    x = torch.randn(40, 3, 6).double() - 3
    forward, theta = functional(base)
    ours = state(base, reestimated(forward, theta, x))
    copy = network(0).train()
    for layer in (copy[1], copy[3], copy[6]):
        layer.momentum = 1.0
    copy(x)
    for name, value in copy.state_dict().items():
        if "running" in name and not name.startswith(("3", "6")):
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)
    assert torch.equal(theta["1.running_mean"], entries(network(0))["1.running_mean"]), "nothing is written in place"


def test_layers_that_are_kept_normalise_by_what_they_have():
    base = network(0)
    x = torch.randn(40, 3, 6).double() - 3
    forward, theta = functional(base)
    found = reestimated(forward, theta, x, kept={"1.running_mean", "1.running_log_variance"})
    changed = {name for name in theta if not torch.equal(found[name], theta[name])}
    assert changed == {f"{layer}.running_{what}" for layer in (3, 6) for what in ("mean", "log_variance")}
    with torch.no_grad():  # the last layer's inputs, in the network with the statistics that were found
        hidden = x
        base.load_state_dict(state(base, found))
        for layer in list(base)[:6]:
            hidden = layer(hidden)
    reached = found["6.running_mean"]
    instance = base[3]
    assert instance.track_running_stats
    assert float((hidden.mean(0) - reached).abs().max()) < 0.2, "instance statistics are means of examples"
    everything = reestimated(forward, theta, x)
    assert float((everything["6.running_mean"] - reached).abs().max()) > 1e-3


def test_other_buffers_must_agree():
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for module, value in ((net, 1.0), (other, 2.0)):
        module.register_buffer("scale", torch.tensor(value))
    with pytest.raises(InputError, match=r"buffer scale: expected one value in every model"):
        entries(net, other.state_dict())
    net.register_buffer("steps", torch.tensor(3))
    other.register_buffer("steps", torch.tensor(4))
    other.get_buffer("scale").fill_(1.0)
    assert list(entries(net, other.state_dict())) == ["weight", "bias"]
    assert int(state(net, entries(other))["steps"]) == 3, "integer buffers stay the base's"
