import math

import pytest
import torch

from bounds.linearize import jvp_scores, linearize, residual, transfer_error
from bounds.types import InputError
from tests import oracles
from tests.tolerances import assert_near


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linearised_scores_match_the_dense_jacobian(name, dtype):
    forward, params, inputs = oracles.MODELS[name](dtype)
    step = oracles.displacement(params)
    theta = {key: value + step[key] for key, value in params.items()}
    expected = forward(params, inputs) + oracles.jacobian(forward, params, inputs) @ oracles.flatten(step)
    assert_near(linearize(forward, params)(theta, inputs), expected, dtype)
    assert_near(linearize(forward, params)(params, inputs), forward(params, inputs), dtype)


@pytest.mark.parametrize("name", oracles.MODELS)
def test_directional_derivatives_match_the_dense_jacobian_and_finite_differences(name):
    forward, params, inputs = oracles.MODELS[name]()
    whole = oracles.displacement(params)
    partial = {key: whole[key] for key in list(params)[1::2]}
    scores, changes = jvp_scores(forward, params, inputs, [whole, partial, {}], batch_size=2)
    jacobian = oracles.jacobian(forward, params, inputs)
    zeros = {key: torch.zeros_like(value) for key, value in params.items()}
    assert_near(scores, forward(params, inputs))
    assert_near(changes[0], jacobian @ oracles.flatten(whole))
    assert_near(changes[1], jacobian @ oracles.flatten({**zeros, **partial}))
    assert torch.equal(changes[2], torch.zeros_like(scores))
    h = 1e-5
    ahead, behind = ({k: v + s * h * whole[k] for k, v in params.items()} for s in (1, -1))
    difference = (forward(ahead, inputs) - forward(behind, inputs)) / (2 * h)
    torch.testing.assert_close(changes[0], difference, rtol=1e-5, atol=1e-8)


def test_no_displacements_give_an_empty_axis():
    forward, params, inputs = oracles.mlp()
    scores, changes = jvp_scores(forward, params, inputs, [], batch_size=3)
    assert changes.shape == (0, *scores.shape)


def test_linearised_network_is_differentiable_and_affine():
    forward, params, inputs = oracles.vit()
    linear = linearize(forward, params)
    step = oracles.displacement(params)
    theta = {key: value + step[key] for key, value in params.items()}
    weights = torch.randn(len(inputs), oracles.CLASSES, dtype=torch.float64)

    def objective(p):
        return (linear(p, inputs) * weights).sum()

    gradient = oracles.flatten(torch.func.grad(objective)(theta))
    expected = torch.einsum("nc,ncp->p", weights, oracles.jacobian(forward, params, inputs))
    assert_near(gradient, expected)
    leaves = {key: value.clone().requires_grad_() for key, value in theta.items()}
    objective(leaves).backward()
    assert_near(torch.cat([leaf.grad.flatten() for leaf in leaves.values() if leaf.grad is not None]), expected)
    second = torch.func.jvp(torch.func.grad(objective), (theta,), (step,))[1]
    assert_near(oracles.flatten(second).abs().max() + 1.0, torch.tensor(1.0))


def test_linearised_network_works_under_autocast():
    forward, params, inputs = oracles.vit(torch.float32)
    linear = linearize(forward, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(params, inputs).dtype == torch.float32


def test_transfer_error_bounds_cross_entropy_for_every_label_and_is_attained():
    scores, linear = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    error = transfer_error(scores, linear)
    gaps = torch.stack(
        [
            torch.nn.functional.cross_entropy(scores, torch.full((9,), k), reduction="none")
            - torch.nn.functional.cross_entropy(linear, torch.full((9,), k), reduction="none")
            for k in range(5)
        ]
    )
    torch.testing.assert_close(error.positive, gaps.amax(0))
    torch.testing.assert_close(error.absolute, gaps.abs().amax(0))
    assert (error.absolute - error.positive).max() > 0.1


def test_transfer_error_ignores_a_constant_and_survives_large_scores():
    scores = torch.tensor([[300.0, -300.0, 0.0]])
    shifted = transfer_error(scores, scores + 7.0)
    assert shifted.positive.item() == 0.0
    assert shifted.absolute.item() == 0.0
    assert transfer_error(scores, -scores).absolute.item() == 600.0


def test_residual_is_zero_at_the_anchor_and_one_half_when_half_is_missed():
    start = torch.randn(4, 3)
    move = torch.randn(4, 3)
    assert residual(start, start, start) == 0.0
    assert residual(start + move, start + 0.5 * move, start) == pytest.approx(0.5, rel=1e-5)
    assert residual(start, start + move, start) == math.inf


def test_residual_of_a_network_grows_linearly_near_the_anchor():
    forward, params, inputs = oracles.mlp()
    step = oracles.displacement(params)
    values = []
    for s in (0.01, 0.02):
        theta = {key: value + s * step[key] for key, value in params.items()}
        linear = linearize(forward, params)(theta, inputs)
        values.append(residual(forward(theta, inputs), linear, forward(params, inputs)))
    assert values[1] / values[0] == pytest.approx(2.0, rel=0.05)


def test_refusals():
    forward, params, inputs = oracles.mlp()
    scores = forward(params, inputs)
    bad = {**params, "0.bias": torch.full((6,), math.nan, dtype=torch.float64)}
    linear = linearize(forward, params)
    for call, match in [
        (lambda: linearize(forward, bad), "NaN"),
        (lambda: linear({"0.bias": params["0.bias"]}, inputs), "differences at"),
        (lambda: linear({k: v.float() for k, v in params.items()}, inputs), "differences at"),
        (lambda: jvp_scores(forward, params, inputs[:0], [params]), "inputs"),
        (lambda: jvp_scores(forward, params, inputs, [{"ghost": inputs}]), "displacement 0"),
        (lambda: jvp_scores(forward, params, inputs, [params], batch_size=0), "batch size"),
        (lambda: transfer_error(scores, scores[:1]), "scores"),
        (lambda: transfer_error(scores, scores * math.nan), "finite"),
        (lambda: residual(scores[0], scores[0], scores[0]), "matrix"),
        (lambda: residual(scores[:0], scores[:0], scores[:0]), "non-empty"),
    ]:
        with pytest.raises(InputError, match=match):
            call()
