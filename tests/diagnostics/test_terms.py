"""The report's terms on ``toy``, against dense float64 Jacobians, autograd and sampling in weight space."""

import math

import pytest
import torch
import torch.nn.functional as F

from bounds.types import Estimate
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.terms import experts as anchors
from diagnostics.terms import linear as linear_world
from diagnostics.terms import merge as merge_terms
from diagnostics.terms import network as network_world
from diagnostics.workspace import Workspace
from merging import merge
from merging.params import combine, partition, squared_norms, subtract
from merging.suites import toy

SETTINGS = Settings(held_out=24, kernel=12, train=60, draws=4000, weight_draws=1, points=3)
ALPHA = (0.5, 0.3, 0.2)
BETA = (0.2, 0.2, 0.6)
SIGMA = (0.05, 0.03)


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.4)


@pytest.fixture(scope="module")
def blocks(suite):
    return partition(suite.task_vectors.base, "tensor")


@pytest.fixture(scope="module")
def artifact(suite):
    return merge(
        "samerging",
        suite.task_vectors,
        suite.tasks,
        suite="toy",
        steps=20,
        examples=16,
        sources=suite.sources,
    )


@pytest.fixture(scope="module")
def displacement(suite, artifact):
    return subtract(artifact.merged, suite.task_vectors.base)


@pytest.fixture(scope="module")
def worlds(suite, blocks, displacement):
    base, directions = suite.task_vectors.base, [*suite.task_vectors.deltas, displacement]
    found = []
    for i, task in enumerate(suite.tasks):
        held_out = linear_world.subsample(task.test, 24, 0)
        products = linear_world.products(task, held_out, i, base, directions, blocks, kernel=12, train=60, seed=0)
        kernel = linear_world.kernels(task, held_out, base, blocks)
        found.append(linear_world.LinearTask(held_out=held_out, kernel=kernel, **products))
    return found


def dense_jacobian(task, params, inputs):
    """J [N, C, P] by one reverse pass per score, over the parameters in order."""
    theta = {k: v.clone().requires_grad_() for k, v in params.items()}
    scores = task.forward(theta, inputs)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(scores[n, c], list(theta.values()), retain_graph=True)])
        for n in range(scores.shape[0])
        for c in range(scores.shape[1])
    ]
    return torch.stack(rows).view(*scores.shape, -1)


def flat(params):
    return torch.cat([v.flatten() for v in params.values()])


def linear_scores(task, base, theta, inputs):
    return task.forward(base, inputs) + dense_jacobian(task, base, inputs) @ (flat(theta) - flat(base))


def test_tangents_kernels_and_train_scores_are_the_dense_ones(suite, worlds, blocks, displacement):
    base = suite.task_vectors.base
    for i, (task, world) in enumerate(zip(suite.tasks, worlds, strict=True)):
        jacobian = dense_jacobian(task, base, world.held_out.inputs)
        for d, direction in enumerate([*suite.task_vectors.deltas, displacement]):
            assert torch.allclose(world.tangents[d], jacobian @ flat(direction), rtol=1e-8, atol=1e-10)
        centred = jacobian - jacobian.mean(dim=1, keepdim=True)
        start = 0
        for b, names in enumerate(blocks.values()):
            size = sum(base[n].numel() for n in names)
            part = centred[:, :, start : start + size]
            assert torch.allclose(world.kernel[:, b], part @ part.transpose(1, 2), rtol=1e-8, atol=1e-10)
            start += size
        sample = linear_world.subsample(task.train, 60, 0)
        own = linear_scores(task, base, suite.task_vectors.expert(i), sample.inputs)
        assert torch.allclose(world.train_scores, own, rtol=1e-8, atol=1e-10)
        assert sample.labels is not None
        assert torch.equal(world.train_labels, sample.labels)


def weight_draws(base, mean, blocks, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [network_world.draw_weights(mean, SIGMA, blocks, generator) for _ in range(count)]


def test_score_space_draws_have_the_law_of_weight_space_draws(suite, worlds, blocks):
    """E_Q loss, E_Q‖∇_bℓ^lin‖² and E_Q KL(p_m‖p_θ): C numbers per example against whole weights."""
    base, j = suite.task_vectors.base, 2
    for task, world in zip(suite.tasks, worlds, strict=True):
        draws = world.posterior_scores(j, SIGMA, 20000, seed=0)
        inputs, labels = world.held_out.inputs, world.labels
        jacobian = dense_jacobian(task, base, inputs)
        thetas = torch.stack([flat(t) for t in weight_draws(base, suite.task_vectors.expert(j), blocks, 4000)])
        scores = task.forward(base, inputs) + torch.einsum("ncp,sp->snc", jacobian, thetas - flat(base))
        reference = world.scores(-1)
        for reduce in (
            lambda s, labels=labels: (
                F.cross_entropy(s.flatten(0, 1), labels.repeat(len(s)), reduction="none").view(len(s), -1).mean(1)
            ),
            lambda s, r=reference: (r.softmax(-1) * (r.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean(1),
        ):
            left, right = Estimate.of_mean(reduce(draws)), Estimate.of_mean(reduce(scores))
            assert abs(left.value - right.value) < 4 * math.hypot(left.stderr, right.stderr)
        sizes = [sum(base[n].numel() for n in names) for names in blocks.values()]
        errors = scores.softmax(-1) - F.one_hot(labels, scores.shape[-1])
        gradients = torch.einsum("snc,ncp->snp", errors, jacobian)
        for b, part in enumerate(gradients.split(sizes, dim=-1)):
            expected = Estimate.of_mean(part.square().sum(-1).mean(1))
            assert float(world.gradient_moments(draws).mean(0)[b]) == pytest.approx(
                expected.value, abs=5 * expected.stderr
            )


def test_gap_gain_and_risk_of_the_linearised_reading(suite, worlds, blocks, artifact, displacement):
    base, tv, scale = suite.task_vectors.base, suite.task_vectors, 0.7
    posteriors = anchors.LinearPosteriors([[w.posterior_scores(j, SIGMA, 50, 0) for j in range(3)] for w in worlds])
    terms = merge_terms.linearised_terms(worlds, posteriors, scale, ALPHA, BETA)
    theta = flat(combine(base, displacement, scale)).requires_grad_()
    risk = torch.zeros((), dtype=torch.float64)
    for a, task, world in zip(ALPHA, suite.tasks, worlds, strict=True):
        jacobian = dense_jacobian(task, base, world.held_out.inputs)
        scores = task.forward(base, world.held_out.inputs) + jacobian @ (theta - flat(base))
        risk = risk + a * F.cross_entropy(scores, world.labels)
    (gradient,) = torch.autograd.grad(risk, [theta])
    centre = sum(b * flat(tv.expert(j)) for j, b in enumerate(BETA))
    assert terms.risk.value == pytest.approx(float(risk.detach()), rel=1e-9)
    assert terms.gap.value == pytest.approx(float(gradient @ (theta.detach() - centre)), rel=1e-8)
    for j in range(3):
        expected = float(gradient @ (theta.detach() - flat(tv.expert(j))))
        assert terms.gap_per_expert[j].value == pytest.approx(expected, rel=1e-8)
    assert terms.gain.value == pytest.approx(sum(b * e.value for b, e in zip(BETA, terms.gain_per_expert, strict=True)))
    assert terms.gain.value > 0


def test_gap_of_the_assumed_linear_reading_is_the_networks_directional_derivative(suite, worlds, artifact):
    tv, theta = suite.task_vectors, artifact.merged
    centre = {k: v + sum(b * d[k] for b, d in zip(BETA, tv.deltas, strict=True)) for k, v in tv.base.items()}
    network = merge_terms.network_at(suite.tasks, worlds, theta, centre)
    draws = network_world.PosteriorDraws([[w.scores0] * 3 for w in worlds], [], [w.labels for w in worlds])
    terms = merge_terms.assumed_linear_terms(worlds, network, draws, ALPHA, BETA)

    def risk(t):
        point = {k: centre[k] + t * (theta[k] - centre[k]) for k in theta}
        return sum(
            a * float(F.cross_entropy(task.forward(point, w.held_out.inputs), w.labels))
            for a, task, w in zip(ALPHA, suite.tasks, worlds, strict=True)
        )

    assert terms.gap.value == pytest.approx((risk(1 + 1e-5) - risk(1 - 1e-5)) / 2e-5, rel=1e-6)
    assert terms.risk.value == pytest.approx(risk(1), rel=1e-9)


def test_transfer_error_bounds_the_difference_of_risks_and_the_residual_is_relative(suite, worlds, artifact):
    network = merge_terms.network_at(suite.tasks, worlds, artifact.merged, suite.task_vectors.base)
    transfer = merge_terms.transfer_terms(worlds, network, 1.0, ALPHA)
    real = sum(a * float(F.cross_entropy(s, w.labels)) for a, s, w in zip(ALPHA, network.scores, worlds, strict=True))
    linear = sum(a * float(F.cross_entropy(w.scores(-1), w.labels)) for a, w in zip(ALPHA, worlds, strict=True))
    assert 0 < transfer.positive.value <= transfer.absolute.value
    assert real - linear <= transfer.positive.value
    assert abs(real - linear) <= transfer.absolute.value

    def distance(left, right):
        centred = [(a - b) - (a - b).mean(dim=1, keepdim=True) for a, b in zip(left, right, strict=True)]
        return math.sqrt(sum(float(c.square().sum()) for c in centred))

    difference = distance(network.scores, [w.scores(-1) for w in worlds])
    moved = distance(network.scores, [w.scores0 for w in worlds])
    assert transfer.residual == pytest.approx(difference / moved, rel=1e-6)


def test_anchor_statistics(suite, worlds, blocks):
    sizes = [len(task.train) for task in suite.tasks]
    linear, posteriors = anchors.linearised(worlds, suite.task_vectors, sizes, blocks, SETTINGS)
    for j, (statistics, world) in enumerate(zip(linear.statistics, worlds, strict=True)):
        assert statistics.displacement_sq == tuple(squared_norms(suite.task_vectors.deltas[j], blocks).values())
        own = F.cross_entropy(world.train_scores, world.train_labels)
        assert statistics.own_risk.value == pytest.approx(float(own), rel=1e-9)
        assert statistics.own_risk.status == "exact"  # all of S_j was used
        assert [k.value for k in statistics.kernel] == pytest.approx(world.train_trace.mean(0).tolist())
        assert statistics.kernel[0].status == "estimated"  # 12 of 60 were
        assert statistics.sigma[1] == 0  # the second layer does not move
        assert statistics.eta * statistics.qsb.value < 2
        for i, other in enumerate(worlds):
            expected = linear_world.losses(posteriors.scores[i][j], other.labels).mean()
            assert float(linear.cross.risk[i, j]) == pytest.approx(float(expected))


def sample(suite, worlds, blocks, means, *, sigma, draws):
    held_out = [w.held_out for w in worlds]
    sigmas = [(sigma, sigma)] * 3
    return network_world.sample_posteriors(
        suite.tasks, held_out, means, sigmas, blocks, draws=draws, seed=0, posteriors=range(3)
    )


def test_sampled_posteriors_share_the_examples_out(suite, worlds, blocks):
    means = [suite.task_vectors.expert(j) for j in range(3)]
    drawn = sample(suite, worlds, blocks, means, sigma=0.0, draws=3)
    for i, (task, world) in enumerate(zip(suite.tasks, worlds, strict=True)):
        for j in range(3):  # without noise every draw is the expert itself, and the order must be the examples'
            assert torch.allclose(drawn.scores[i][j], task.forward(means[j], world.held_out.inputs))
    noisy = sample(suite, worlds, blocks, means, sigma=0.1, draws=3)
    assert not torch.allclose(noisy.scores[0][0], drawn.scores[0][0])


def test_gradients_of_sampled_posteriors_are_per_example(suite, worlds, blocks):
    means = [suite.task_vectors.expert(j) for j in range(3)]
    drawn = sample(suite, worlds, blocks, means, sigma=0.0, draws=1)
    task, world = suite.tasks[1], worlds[1]
    inputs = world.held_out.take(slice(5)).inputs
    for n in range(5):
        theta = {k: v.clone().requires_grad_() for k, v in means[1].items()}
        loss = F.cross_entropy(task.forward(theta, inputs[n : n + 1]), world.labels[n : n + 1])
        gradients = torch.autograd.grad(loss, list(theta.values()))
        expected = [float(g.square().sum()) for g in gradients]
        assert drawn.gradients[1][n].tolist() == pytest.approx(expected, rel=1e-8)


def test_the_linearised_bound_is_the_held_out_linear_risk_plus_the_experts_slack(suite, artifact):
    """(5a) on the sample: heterogeneity, gap and gain only distribute the risk; all the slack is the experts'."""
    settings = Settings(held_out=24, kernel=12, train=60, draws=10, points=3)
    subject = Subject("merge", "out.pt", artifact)
    workspace = Workspace([subject], lambda: suite, settings)
    bounds, at = workspace.at_merge(subject)
    bound = bounds[1]
    assert bound.reading == "linearised"
    own = [sum(term.per_task[j].value for term in bound.terms[:4]) for j in range(3)]
    slack = [own[j] - float(workspace.experts.linear.cross.risk[j, j]) for j in range(3)]
    expected = at.linear.risk.value + sum(b * s for b, s in zip(workspace.beta, slack, strict=True))
    assert bound.value == pytest.approx(expected, rel=1e-9)
