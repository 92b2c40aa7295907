"""Rows of the Jacobian handed on while the backward pass makes them."""

import pytest
import torch

from bounds.autodiff import differentiable
from bounds.jacobian import norm_stream, row_function, row_stream, squared_norms
from bounds.types import take
from tests import oracles
from tests.tolerances import assert_near


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("together", [True, False])
def test_rows_are_those_of_the_whole_jacobian(name, together):
    forward, params, inputs = oracles.MODELS[name]()
    cotangents, found = torch.randn(2, oracles.CLASSES, dtype=torch.float64), {}

    def keep(of, rows):
        assert not torch.is_grad_enabled()
        assert not rows.requires_grad, "what is made of them would keep them"
        found[of] = rows.clone()

    with torch.no_grad(), differentiable():
        one = take(inputs, slice(0, 1))
        scores, stream = row_stream(forward, params, list(params), one, keep, together=together)
        stream(cotangents)
        expected = row_function(forward, params, list(params), one)(cotangents[None])
        assert_near(scores, forward(params, one))
        _, squares = norm_stream(forward, params, one, oracles.halves(params), together=together)
        assert_near(squares(cotangents), squared_norms(expected, oracles.halves(params))[0])
    assert found.keys() == params.keys()
    for of, rows in found.items():
        assert_near(rows, expected[of][0])


def test_a_row_is_handed_on_before_the_backward_pass_goes_on():
    """Else all rows would be in memory when the pass ends, whatever is done with each of them then."""
    params = {"first": torch.randn(4, 3), "second": torch.randn(3, 2)}
    events = []

    def forward(p, x):
        hidden = torch.tanh(x @ p["first"])
        hidden.register_hook(lambda gradient: events.append("hidden"))
        return hidden @ p["second"]

    def note(name, rows):
        events.append((name, tuple(rows.shape)))

    with torch.no_grad():
        _, stream = row_stream(forward, params, list(params), torch.randn(1, 4), note, together=False)
        stream(torch.eye(2))
    assert events == [("second", (2, 3, 2)), "hidden", ("first", (2, 4, 3))]


def test_all_rows_may_be_handed_on_again():
    params, times = {"w": torch.randn(4, 3)}, []
    with torch.no_grad():
        _, stream = row_stream(
            lambda p, x: torch.as_tensor(x) @ p["w"],
            params,
            ["w"],
            torch.ones(1, 4),
            lambda _, rows: times.append(rows),
            together=False,
        )
        stream(torch.eye(3)[:2])
        stream(torch.eye(3)[2:])
    assert [len(rows) for rows in times] == [2, 1]
    assert torch.equal(times[0][0], torch.eye(3)[:1].expand(4, 3))
