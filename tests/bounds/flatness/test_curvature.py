from typing import Any

import pytest
import torch

from bounds.autodiff import differentiable
from bounds.flatness import curvature
from bounds.lanczos import largest_eigenvalues
from bounds.types import InputError, Sample
from tests import oracles
from tests.tolerances import assert_near


def labelled(name, dtype=torch.float64, n=5) -> tuple[Any, Any, Any]:
    models: Any = {**oracles.MODELS, **oracles.HUGGING_FACE}
    forward, params, inputs = models[name](dtype, n)
    return forward, params, Sample(inputs, torch.arange(n) % oracles.CLASSES)


def mean_loss(forward, params, sample):
    return torch.nn.functional.cross_entropy(forward(params, sample.inputs), sample.labels)


def dense_hessian(forward, params, sample):
    return oracles.hessian(
        lambda theta: mean_loss(forward, oracles.unflatten(theta, params), sample), oracles.flatten(params)
    )


def dense_gauss_newton(forward, params, sample):
    jacobian = oracles.jacobian(forward, params, sample.inputs)
    p = forward(params, sample.inputs).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, middle, jacobian) / len(sample)


DENSE = {"hessian": dense_hessian, "ggn": dense_gauss_newton}


@pytest.mark.parametrize("matrix", DENSE)
def test_products_and_top_eigenvalue_match_the_dense_matrix(matrix):
    forward, params, sample = labelled("mlp")
    expected = DENSE[matrix](forward, params, sample)
    operator: Any = curvature.operator(forward, params, sample, matrix, batch_size=2)
    vector = torch.randn(len(expected), dtype=torch.float64)
    with differentiable():
        product = operator @ vector
    assert_near(product, expected @ vector)
    got = curvature.top_eigenvalue(forward, params, sample, matrix, batch_size=2)
    assert got == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-8)


def test_top_curvature_has_the_error_of_the_examples_curvatures():
    forward, params, sample = labelled("mlp")
    values, vectors = torch.linalg.eigh(dense_hessian(forward, params, sample))
    along = vectors[:, -1]
    single = [dense_hessian(forward, params, sample.take(slice(i, i + 1))) for i in range(len(sample))]
    curvatures = torch.stack([along @ one @ along for one in single])
    got = curvature.top_curvature(forward, params, sample, batch_size=2)
    assert got.value == pytest.approx(float(values[-1]), rel=1e-8)
    assert float(curvatures.mean()) == pytest.approx(got.value, rel=1e-8)
    assert got.stderr == pytest.approx(float(curvatures.std()) / len(sample) ** 0.5, rel=1e-4)
    assert (got.n, got.status) == (len(sample), "estimated")
    with pytest.raises(InputError, match="at least 2"):
        curvature.top_curvature(forward, params, sample.take(slice(1)))


@pytest.mark.parametrize("name", ["vit", "text"])
@pytest.mark.parametrize("matrix", DENSE)
def test_products_of_towers_match_the_dense_matrix(name, matrix):
    forward, params, sample = labelled(name, n=3)
    step = oracles.flatten(oracles.displacement(params, scale=1.0))
    operator: Any = curvature.operator(forward, params, sample, matrix, batch_size=2)
    with differentiable():
        product = operator @ step
    if matrix == "ggn":
        jacobian = oracles.jacobian(forward, params, sample.inputs)
        p = forward(params, sample.inputs).softmax(-1)
        change = jacobian @ step
        change = p * (change - (p * change).sum(-1, keepdim=True))
        assert_near(product, torch.einsum("ncp,nc->p", jacobian, change) / len(sample))
        return
    at = oracles.flatten(params).requires_grad_()
    value = oracles.plain_attention(lambda: mean_loss(forward, oracles.unflatten(at, params), sample))
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    assert_near(product, torch.autograd.grad(gradient @ step, at)[0])


@pytest.mark.parametrize("matrix", DENSE)
def test_trace_agrees_within_its_standard_error(matrix):
    forward, params, sample = labelled("mlp")
    expected = float(DENSE[matrix](forward, params, sample).trace())
    got = curvature.curvature_trace(forward, params, sample, matrix, probes=100)
    assert got.status == "estimated"
    assert got.n == 100
    assert abs(got.value - expected) < 4 * got.stderr
    assert got.stderr < 0.2 * abs(expected)


def test_trace_follows_the_generator():
    forward, params, sample = labelled("mlp")

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return curvature.curvature_trace(forward, params, sample, probes=2, generator=generator).value

    assert run(1) == run(1) != run(2)


def test_largest_means_most_positive_unless_magnitude_is_asked_for():
    diagonal = torch.tensor([-5.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    options: Any = {"like": diagonal}
    assert_near(largest_eigenvalues(lambda v: diagonal * v, 4, 2, **options), torch.tensor([2.0, 1.0]))
    assert_near(largest_eigenvalues(lambda v: diagonal * v, 4, 1, which="LM", **options), diagonal[:1])
    assert largest_eigenvalues(lambda v: -3 * v, 1, 1, **options).item() == -3.0


def test_top_eigenvalue_in_float32():
    forward, params, sample = labelled("mlp", torch.float32)
    wide, _, wide_sample = labelled("mlp")
    wide_params = {name: value.double() for name, value in params.items()}
    wide_sample = Sample(sample.inputs.double(), wide_sample.labels)
    got = curvature.top_eigenvalue(forward, params, sample)
    assert got == pytest.approx(curvature.top_eigenvalue(wide, wide_params, wide_sample), rel=1e-4)


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_coefficient_hessian_matches_the_dense_one(name, batch_size):
    forward, params, sample = labelled(name)
    blocks = oracles.halves(params)
    first, second = (oracles.displacement(params, seed, 1.0) for seed in (7, 8))
    second = {key: second[key] for key in list(params)[::2]}  # missing names are 0
    got = curvature.coefficient_hessian(forward, params, sample, [first, second], blocks=blocks, batch_size=batch_size)

    def loss_of(coefficients):
        table = coefficients.view(2, 2)
        moved = dict(params)
        for d, tau in enumerate((first, second)):
            for b, names in enumerate(blocks.values()):
                moved.update({k: moved[k] + table[d, b] * tau[k] for k in names if k in tau})
        return mean_loss(forward, moved, sample)

    assert_near(got, oracles.hessian(loss_of, torch.zeros(4, dtype=torch.float64)))


def test_coefficient_hessian_matches_finite_differences():
    forward, params, sample = labelled("vit")
    tau = oracles.displacement(params, 7, 1.0)
    got = curvature.coefficient_hessian(forward, params, sample, [tau])
    h = 1e-4
    losses = [float(mean_loss(forward, {k: v + s * h * tau[k] for k, v in params.items()}, sample)) for s in (-1, 0, 1)]
    assert got.item() == pytest.approx((losses[0] - 2 * losses[1] + losses[2]) / h**2, rel=1e-4)


def test_a_direction_that_misses_a_block_has_a_zero_row():
    forward, params, sample = labelled("mlp")
    blocks = {"lower": ["0.weight", "0.bias"], "upper": ["2.weight", "2.bias"]}
    tau = {"2.bias": torch.ones(4, dtype=torch.float64)}
    got = curvature.coefficient_hessian(forward, params, sample, [tau], blocks=blocks)
    assert not got[0].any()
    assert got[1, 1].abs() < 1e-12  # all-ones in the scores: cross-entropy does not see it


@pytest.mark.parametrize("name", oracles.HUGGING_FACE)
def test_hugging_face_curvature(name):
    forward, params, sample = labelled(name, n=3)
    tau = oracles.displacement(params, 7, 1.0)
    got = curvature.coefficient_hessian(forward, params, sample, [tau]).item()
    at = torch.zeros(1, dtype=torch.float64)

    def loss_of(s):
        return mean_loss(forward, {k: v + s * tau[k] for k, v in params.items()}, sample)

    assert got == pytest.approx(oracles.hessian(loss_of, at).item(), rel=1e-8)
    operator: Any = curvature.operator(forward, params, sample, batch_size=2)
    with differentiable():
        product = operator @ oracles.flatten(tau)
    assert float(product @ oracles.flatten(tau)) == pytest.approx(got, rel=1e-8)


def test_refusals():
    unknown: Any = "fisher"
    forward, params, sample = labelled("mlp")
    for call, match in [
        (lambda: curvature.operator(forward, params, sample, unknown), "matrix"),
        (lambda: curvature.operator(forward, params, sample, batch_size=0), "batch size"),
        (lambda: curvature.operator(forward, params, Sample(sample.inputs)), "unlabelled"),
        (lambda: curvature.curvature_trace(forward, params, sample, probes=1), "probes"),
        (lambda: curvature.coefficient_hessian(forward, params, sample, []), "directions"),
        (lambda: curvature.coefficient_hessian(forward, params, sample, [{"x": params["0.bias"]}]), "unknown"),
        (lambda: curvature.coefficient_hessian(forward, params, sample, [params], blocks={}), "partition"),
        (lambda: curvature.coefficient_hessian(forward, params, sample, [params], batch_size=0), "batch size"),
    ]:
        with pytest.raises(InputError, match=match):
            call()
