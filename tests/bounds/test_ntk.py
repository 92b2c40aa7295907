import math
from typing import Any

import pytest
import torch

from bounds import ntk
from bounds.autodiff import functional
from bounds.ntk.blocks import _used
from bounds.types import InputError
from tests import oracles
from tests.tolerances import assert_near

ROW = 8 * 70  # bytes: a float64 Jacobian row of the 70-parameter perceptron


def dense_blocks(forward, params, inputs, blocks, centred):
    masks = [oracles.numbers_of(names, params) for names in blocks.values()]
    return oracles.kernel_blocks(oracles.jacobian(forward, params, inputs).double(), masks, centred)


def traces_of(kernels):
    return kernels.diagonal(dim1=-2, dim2=-1).sum(-1)


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centred", [True, False])
def test_blocks_and_exact_traces_match_dense_jacobians(name, dtype, centred):
    forward, params, inputs = oracles.MODELS[name](dtype)
    blocks = oracles.halves(params)
    expected = dense_blocks(forward, params, inputs, blocks, centred)
    kernels = ntk.example_blocks(forward, params, inputs, blocks=blocks, centred=centred)
    assert_near(kernels, expected, dtype)
    traces = ntk.trace(forward, params, inputs, blocks=blocks, centred=centred)
    assert_near(traces.values, traces_of(expected), dtype)
    assert traces.blocks == tuple(blocks)
    assert not traces.stderr.any()
    whole = ntk.trace(forward, params, inputs, centred=centred)
    assert_near(whole.values[:, 0], traces_of(expected).sum(1), dtype)


def partial_displacements(params):
    """A whole displacement, one without its first tensor, and none at all."""
    whole = oracles.displacement(params)
    first = next(iter(params))
    return [whole, {name: value for name, value in whole.items() if name != first}, {}]


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centred", [True, False])
def test_scores_kernels_and_derivatives_of_examples_match_dense_jacobians(name, dtype, centred):
    forward, params, inputs = oracles.MODELS[name](dtype)
    blocks, directions = oracles.halves(params), partial_displacements(params)
    found = ntk.example_products(forward, params, inputs, directions, blocks=blocks, centred=centred)
    assert_near(found.scores, forward(params, inputs), dtype)
    assert_near(found.kernels, dense_blocks(forward, params, inputs, blocks, centred), dtype)
    jacobian = oracles.jacobian(forward, params, inputs).double()
    if centred:
        jacobian = jacobian - jacobian.mean(dim=1, keepdim=True)
    zero = {key: torch.zeros_like(value) for key, value in params.items()}
    expected = torch.stack([jacobian @ oracles.flatten({**zero, **d}).double() for d in directions])
    assert_near(found.derivatives, expected, dtype)
    assert not found.derivatives[2].any()


@pytest.mark.parametrize("budget", [5 * 3 * ROW, 2 * ROW, 100, 1])
def test_budgets_do_not_change_the_derivatives(budget):
    forward, params, inputs = oracles.mlp()
    directions = partial_displacements(params)
    expected = ntk.example_products(forward, params, inputs, directions)
    found = ntk.example_products(forward, params, inputs, directions, budget_bytes=budget)
    assert_near(found.kernels, expected.kernels)
    assert_near(found.derivatives, expected.derivatives)


def test_a_tensor_that_serves_twice_and_one_that_serves_never():
    """Rows are contracted after both uses have been added up; what the scores do not depend on counts as 0."""
    inputs = torch.randn(3, 4, dtype=torch.float64)
    weight, idle = torch.randn(4, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def forward(params, x):
        return torch.tanh(x @ params["weight"]) @ params["weight"]

    params = {"weight": weight, "idle": idle}
    direction = {"weight": torch.randn(4, 4, dtype=torch.float64), "idle": idle}
    found = ntk.example_products(forward, params, inputs, [direction], blocks={"a": ["weight"], "b": ["idle"]})
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda w, x=x: forward({"weight": w}, x[None])[0], weight) for x in inputs]
    ).flatten(2)
    jacobian = jacobian - jacobian.mean(dim=1, keepdim=True)
    assert_near(found.kernels[:, 0], jacobian @ jacobian.mT)
    assert_near(found.derivatives[0], jacobian @ direction["weight"].flatten())
    assert not found.kernels[:, 1].any()
    assert not ntk.trace(forward, params, inputs, blocks={"a": ["weight"], "b": ["idle"]}).values[:, 1].any()


@pytest.mark.parametrize("budget", [None, 3000])
def test_words_that_an_example_does_not_read_count_for_nothing(budget):
    """Their rows are 0, and left out; the displacements move these words, too."""
    torch.manual_seed(0)
    words, layer = torch.nn.Embedding(50, 6), torch.nn.Linear(6, oracles.CLASSES)
    network = torch.nn.Sequential(words, torch.nn.Tanh(), layer).double()
    forward, params = functional(network, lambda module, ids: module(ids).mean(dim=1))
    ids = torch.tensor([[3, 3, 49], [0, 7, 7]])
    blocks, directions = {name: (name,) for name in params}, [oracles.displacement(params, seed) for seed in (5, 6)]
    found = ntk.example_products(forward, params, ids, directions, blocks=blocks, budget_bytes=budget)
    assert_near(found.kernels, dense_blocks(forward, params, ids, blocks, True))
    jacobian = oracles.jacobian(forward, params, ids)
    jacobian = jacobian - jacobian.mean(dim=1, keepdim=True)
    assert_near(found.derivatives, torch.stack([jacobian @ oracles.flatten(d) for d in directions]))


def test_rows_that_are_no_numbers_are_not_left_out():
    rows = torch.zeros(4, 3, 2).movedim(2, 0)  # as an embedding's lie: cotangents last
    rows[1, 2, 0] = math.nan
    used, (moved,) = _used(rows, [torch.arange(12.0).view(4, 3)])
    assert used.shape == (2, 1, 3)
    assert moved.tolist() == [[6.0, 7.0, 8.0]]


def test_an_example_takes_one_forward_pass_whatever_the_displacements():
    forward, params, inputs = oracles.mlp()
    calls = []

    def counted(p, x):
        calls.append(len(x))
        return forward(p, x)

    ntk.example_products(counted, params, inputs, partial_displacements(params))
    assert calls == [1] * (len(inputs) + 1), "and one that says how many scores there are"


# Budgets of everything at once, 5 examples (7 = 5 + 2), 2 rows (3 = 2 + 1), less than a row.
@pytest.mark.parametrize("budget", [None, 5 * 3 * ROW, 2 * ROW, 100, 1])
@pytest.mark.parametrize("vectorize", [False, True])
def test_budget_and_vectorisation_do_not_change_the_result(budget, vectorize):
    forward, params, inputs = oracles.mlp()
    blocks = oracles.halves(params)
    expected = dense_blocks(forward, params, inputs, blocks, True)
    options = {"blocks": blocks, "budget_bytes": budget, "vectorize": vectorize}
    assert_near(ntk.example_blocks(forward, params, inputs, **options), expected)
    assert_near(ntk.trace(forward, params, inputs, **options).values, traces_of(expected))


@pytest.mark.parametrize("name", ["vit", "text"])
def test_vectorised_towers_match(name):
    forward, params, inputs = oracles.MODELS[name]()
    blocks = oracles.halves(params)
    row = sum(value.numel() for value in params.values()) * 8
    plain = ntk.trace(forward, params, inputs, blocks=blocks).values
    vectorised = ntk.trace(forward, params, inputs, blocks=blocks, vectorize=True, budget_bytes=2 * 3 * row)
    assert_near(vectorised.values, plain)


def test_centring_matters_and_removes_the_constant_direction():
    forward, params, inputs = oracles.mlp()
    kernels = ntk.example_blocks(forward, params, inputs)
    raw = ntk.example_blocks(forward, params, inputs, centred=False)
    assert_near(kernels.sum(-1).abs().max() + 1.0, torch.tensor(1.0))
    assert (traces_of(raw) > traces_of(kernels) * 1.05).all()


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("centred", [True, False])
def test_quadratic_form_matches_dense_jacobians(name, centred):
    forward, params, inputs = oracles.MODELS[name]()
    step = oracles.displacement(params)
    change = oracles.jacobian(forward, params, inputs) @ oracles.flatten(step)
    expected = (change @ oracles.centring(4) if centred else change).square().sum(-1)
    got = ntk.quadratic_form(forward, params, inputs, step, centred=centred, batch_size=2)
    assert_near(got, expected)


def test_quadratic_form_of_a_partial_direction():
    forward, params, inputs = oracles.mlp()
    step = oracles.displacement(params)
    partial = {"0.weight": step["0.weight"]}
    full = {k: v if k in partial else torch.zeros_like(v) for k, v in step.items()}
    got = ntk.quadratic_form(forward, params, inputs, partial)
    assert_near(got, ntk.quadratic_form(forward, params, inputs, full))
    assert not ntk.quadratic_form(forward, params, inputs, {}).any()


@pytest.mark.parametrize(("method", "probes"), [("hutchinson", 16), ("hutch++", 4)])
def test_probes_are_unbiased_within_their_standard_error(method, probes):
    forward, params, inputs = oracles.mlp()
    blocks = oracles.halves(params)
    exact = ntk.trace(forward, params, inputs, blocks=blocks)
    rounds = 60
    runs = [
        ntk.trace(forward, params, inputs, blocks=blocks, method=method, probes=probes, vectorize=True)
        for _ in range(rounds)
    ]
    values = torch.stack([run.values for run in runs])
    errors = torch.stack([run.stderr for run in runs]).square().mean(0).sqrt() / rounds**0.5
    deviations = (values.mean(0) - exact.values) / errors
    assert deviations.abs().max() < 4.5
    assert 0.4 < deviations.square().mean().sqrt() < 1.9  # 7 independent values: 0.4 and 1.9 have p < 0.01


def test_hutch_plus_plus_is_exact_once_its_sketch_spans_the_scores():
    forward, params, inputs = oracles.vit()
    exact = ntk.trace(forward, params, inputs)
    sketched = ntk.trace(forward, params, inputs, method="hutch++", probes=9, budget_bytes=1)
    assert_near(sketched.values, exact.values)


def test_probes_follow_the_generator():
    forward, params, inputs = oracles.mlp()

    def run(seed, vectorize=False):
        generator = torch.Generator().manual_seed(seed)
        options = {"method": "hutchinson", "generator": generator, "vectorize": vectorize}
        return ntk.trace(forward, params, inputs, **options).values

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert_near(run(1, True), run(1))


def test_trace_estimates_say_what_they_are():
    forward, params, inputs = oracles.mlp()
    blocks = oracles.halves(params)
    exact = ntk.trace(forward, params, inputs, blocks=blocks)
    whole, part = exact.estimates(whole_sample=True), exact.estimates()
    assert list(whole) == list(blocks)
    for index, block in enumerate(blocks):
        assert whole[block].value == pytest.approx(exact.values[:, index].mean().item())
        assert (whole[block].stderr, whole[block].status, whole[block].n) == (0.0, "exact", 7)
        assert part[block].stderr == pytest.approx(exact.values[:, index].std().item() / 7**0.5)
        assert part[block].status == "estimated"
    probed = ntk.trace(forward, params, inputs, method="hutchinson", probes=8)
    estimate = probed.estimates(whole_sample=True)["model"]
    assert estimate.status == "estimated"
    assert estimate.stderr == pytest.approx(float(probed.stderr.square().sum().sqrt()) / 7)


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("centred", [True, False])
def test_gram_matches_dense_jacobians_by_both_methods(name, centred):
    forward, params, inputs = oracles.MODELS[name]()
    others = oracles.MODELS[name](n=2)[2]
    first, second = (oracles.jacobian(forward, params, x) for x in (inputs, others))
    square, rectangle = oracles.gram(first, first, centred), oracles.gram(first, second, centred)
    for method in ("jacobian", "products"):
        options = {"centred": centred, "method": method, "batch_size": 2}
        assert_near(ntk.gram(forward, params, inputs, **options), square)
        assert_near(ntk.gram(forward, params, inputs, others, **options), rectangle)


# All at once; groups of parameters; single tensors in chunks of 3 (7 = 3 + 3 + 1) and of 1 example.
@pytest.mark.parametrize("budget", [10**6, 2 * 21 * 8 * 40, 4 * 3 * 8 * 30 * 3, 1])
def test_gram_within_any_budget(budget):
    forward, params, inputs = oracles.mlp()
    jacobian = oracles.jacobian(forward, params, inputs)
    expected = oracles.gram(jacobian, jacobian, True)
    assert_near(ntk.gram(forward, params, inputs, budget_bytes=budget), expected)
    got = ntk.gram(forward, params, inputs, inputs[:5], budget_bytes=budget)
    assert_near(got, expected[:, :, :5])


def test_gram_in_float32():
    forward, params, inputs = oracles.vit(torch.float32)
    jacobian = oracles.jacobian(forward, params, inputs).double()
    assert_near(ntk.gram(forward, params, inputs), oracles.gram(jacobian, jacobian, True), torch.float32)


@pytest.mark.parametrize("name", ["mlp", "vit"])
@pytest.mark.parametrize("centred", [True, False])
def test_spectrum_matches_the_dense_gram_matrix(name, centred):
    forward, params, inputs = oracles.MODELS[name]()
    jacobian = oracles.jacobian(forward, params, inputs)
    size = len(inputs) * oracles.CLASSES
    eigenvalues = torch.linalg.eigvalsh(oracles.gram(jacobian, jacobian, centred).reshape(size, size)).flip(0)
    dimension = len(inputs) * (oracles.CLASSES - centred)
    for k in (1, 3, dimension):
        got = ntk.spectrum(forward, params, inputs, k, centred=centred, batch_size=2)
        assert_near(got.eigenvalues, eigenvalues[:k])
        assert got.trace == pytest.approx(float(eigenvalues.sum()), rel=1e-8)
        assert got.effective_rank == pytest.approx(float(eigenvalues.sum() / eigenvalues[0]), rel=1e-8)


def test_spectrum_in_float32():
    forward, params, inputs = oracles.mlp(torch.float32)
    wide, wide_params, wide_inputs = oracles.mlp()
    got = ntk.spectrum(forward, params, inputs, 3)
    exact = ntk.spectrum(wide, {k: v.double() for k, v in params.items()}, inputs.double(), 3)
    assert len(wide_params) == len(params)
    assert len(wide_inputs) == len(inputs)
    assert_near(got.eigenvalues, exact.eigenvalues, torch.float32)


def dense_drift(forward, params0, params1, inputs):
    kernels = []
    for params in (params0, params1):
        jacobian = oracles.jacobian(forward, params, inputs)
        kernels.append(oracles.gram(jacobian, jacobian, True).flatten())
    cosine = torch.nn.functional.cosine_similarity(*kernels, dim=0)
    return 1 - float(cosine), float((kernels[1] - kernels[0]).norm() / kernels[0].norm())


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_drift_matches_dense_kernels(name):
    forward, params, inputs = oracles.MODELS[name]()
    step = oracles.displacement(params, scale=0.3)
    moved = {key: value + step[key] for key, value in params.items()}
    rotation, change = dense_drift(forward, params, moved, inputs)
    exact = ntk.drift(forward, params, moved, inputs)
    assert exact.rotation.value == pytest.approx(rotation, rel=1e-7)
    assert exact.relative_change.value == pytest.approx(change, rel=1e-8)
    assert exact.rotation.status == "exact"
    probed = ntk.drift(forward, params, moved, inputs, method="probes", probes=64)
    for estimate, value in ((probed.rotation, rotation), (probed.relative_change, change)):
        assert estimate.status == "estimated"
        assert 0 < estimate.stderr < 0.2 * value
        assert abs(estimate.value - value) < 4 * estimate.stderr


def test_drift_is_zero_at_the_same_point_and_rotation_ignores_scale():
    forward, params, inputs = oracles.mlp()
    still = ntk.drift(forward, params, params, inputs)
    assert (still.rotation.value, still.relative_change.value) == (0.0, 0.0)
    linear, weights = functional(torch.nn.Linear(5, 4, bias=False).double(), lambda m, x: m(x) ** 3)
    larger = {"weight": 2 * weights["weight"]}  # d(s³) = 3s²ds: the kernel grows 16-fold, its direction stays
    grown = ntk.drift(linear, weights, larger, inputs)
    assert grown.rotation.value == pytest.approx(0.0, abs=1e-14)
    assert grown.relative_change.value == pytest.approx(15.0)


@pytest.mark.parametrize("name", oracles.HUGGING_FACE)
def test_hugging_face_models(name):
    forward, params, inputs = oracles.HUGGING_FACE[name]()
    blocks = oracles.halves(params)
    jacobian = oracles.jacobian(forward, params, inputs)
    masks = [oracles.numbers_of(names, params) for names in blocks.values()]
    expected = oracles.kernel_blocks(jacobian, masks, True)
    assert_near(ntk.example_blocks(forward, params, inputs, blocks=blocks), expected)
    assert_near(ntk.trace(forward, params, inputs, blocks=blocks).values, traces_of(expected))
    step = oracles.displacement(params)
    change = (jacobian @ oracles.flatten(step)) @ oracles.centring(4)
    assert_near(ntk.quadratic_form(forward, params, inputs, step), change.square().sum(-1))
    assert_near(ntk.gram(forward, params, inputs), oracles.gram(jacobian, jacobian, True))


def test_refusals():
    unknown: Any = "exactly"
    forward, params, inputs = oracles.mlp()
    single, single_params = functional(torch.nn.Linear(5, 1).double())
    nothing = {key: torch.zeros_like(value) for key, value in params.items()}
    bad = {**params, "0.bias": params["0.bias"] / 0}
    for call, match in [
        (lambda: ntk.trace(forward, bad, inputs), "NaN"),
        (lambda: ntk.trace(forward, params, inputs[:0]), "inputs"),
        (lambda: ntk.trace(forward, params, inputs, blocks={"x": ["0.bias"]}), "partition"),
        (lambda: ntk.trace(forward, params, inputs, method=unknown), "method"),
        (lambda: ntk.trace(forward, params, inputs, method="hutchinson", probes=1), "probes"),
        (lambda: ntk.trace(forward, params, inputs, method="hutch++", probes=3), "probes"),
        (lambda: ntk.trace(forward, params, inputs, budget_bytes=0), "budget"),
        (lambda: ntk.trace(single, single_params, inputs), "centred=False"),
        (lambda: ntk.example_blocks(forward, bad, inputs), "NaN"),
        (lambda: ntk.quadratic_form(forward, params, inputs, {"ghost": inputs}), "direction"),
        (lambda: ntk.gram(forward, params, inputs, method=unknown), "method"),
        (lambda: ntk.gram(forward, params, inputs, inputs[:0]), "inputs"),
        (lambda: ntk.spectrum(forward, params, inputs, 22), r"1\.\.21"),
        (lambda: ntk.spectrum(forward, params, inputs, 0), r"1\.\.21"),
        (lambda: ntk.drift(forward, params, bad, inputs), "NaN"),
        (lambda: ntk.drift(forward, params, {"0.bias": inputs}, inputs), "missing"),
        (lambda: ntk.drift(forward, params, params, inputs, method="probes", probes=1), "probes"),
        (lambda: ntk.drift(lambda p, x: forward(p, x) * 0, params, nothing, inputs), "not 0"),
    ]:
        with pytest.raises(InputError, match=match):
            call()


def test_a_single_score_has_an_uncentred_kernel():
    single, params = functional(torch.nn.Linear(5, 1).double())
    inputs = torch.randn(3, 5, dtype=torch.float64)
    values = ntk.trace(single, params, inputs, centred=False).values
    assert_near(values[:, 0], inputs.square().sum(1) + 1)
