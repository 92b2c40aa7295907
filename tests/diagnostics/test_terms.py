"""The report's terms on ``toy``, against dense float64 Jacobians, autograd and sampling in weight space."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from bounds.flatness import gradient_norm
from bounds.heterogeneity import cross_risk
from bounds.jacobian import centre
from bounds.linearize import linearize
from bounds.pac_bayes import amplification, qsb_constant
from bounds.theorems import Experts, MergedModel, Weights, theorem2
from bounds.types import Estimate
from diagnostics.settings import ETA_GRID, Settings
from diagnostics.subject import Subject
from diagnostics.terms import anchors as slack
from diagnostics.terms import experts as anchors
from diagnostics.terms import forms
from diagnostics.terms import linear as linear_world
from diagnostics.terms import merge as merge_terms
from diagnostics.terms import network as network_world
from diagnostics.workspace import Workspace
from merging import TaskVectors, merge
from merging.params import combine, partition, squared_norms, subtract
from merging.suites import toy
from merging.task_vectors import on_demand

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
        measured = linear_world.on_held_out(task, held_out, base, directions, blocks)
        own = linear_world.on_training(task, directions[i], base, blocks, kernel=12, train=60, seed=0)
        found.append(linear_world.LinearTask(held_out=held_out, **measured, **own))
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
        assert torch.allclose(world.scores0, task.forward(base, world.held_out.inputs), rtol=1e-8, atol=1e-10)
        centred = jacobian - jacobian.mean(dim=1, keepdim=True)
        for d, direction in enumerate([*suite.task_vectors.deltas, displacement]):
            assert torch.allclose(world.tangents[d], centred @ flat(direction), rtol=1e-8, atol=1e-10)
        start = 0
        for b, names in enumerate(blocks.values()):
            size = sum(base[n].numel() for n in names)
            part = centred[:, :, start : start + size]
            assert torch.allclose(world.kernel[:, b], part @ part.transpose(1, 2), rtol=1e-8, atol=1e-10)
            start += size
        sample = linear_world.subsample(task.train, 60, 0)
        own = linear_scores(task, base, suite.task_vectors.expert(i), sample.inputs)
        assert torch.allclose(world.train_scores0, task.forward(base, sample.inputs), rtol=1e-8, atol=1e-10)
        assert torch.allclose(centre(world.train_scores), centre(own), rtol=1e-8, atol=1e-10)
        own_rows = dense_jacobian(task, base, sample.take(slice(12)).inputs)
        own_rows = own_rows - own_rows.mean(dim=1, keepdim=True)
        assert torch.allclose(world.train_trace.sum(dim=1), own_rows.square().sum(dim=(1, 2)), rtol=1e-8)
        assert sample.labels is not None
        assert torch.equal(world.train_labels, sample.labels)


def weight_draws(base, mean, blocks, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [network_world.draw_weights(mean, SIGMA, blocks, generator) for _ in range(count)]


@pytest.mark.parametrize(("budget", "times"), [(2**30, 1), (3000, 4)])
def test_task_vectors_of_files_are_formed_once_where_the_budget_holds_them(suite, blocks, monkeypatch, budget, times):
    """Else once for the check and once for each example: reading experts would cost more than the network."""
    base = suite.task_vectors.base
    vectors = TaskVectors.on_demand(
        base, {n: suite.task_vectors.expert(i) for i, n in enumerate(suite.task_vectors.names)}
    )
    calls = []
    formed = on_demand.difference
    monkeypatch.setattr(on_demand, "difference", lambda *of: calls.append(1) or formed(*of))
    monkeypatch.setenv("MERGEBOUND_MEMORY_BYTES", str(budget))
    task = suite.tasks[0]
    found = linear_world.on_held_out(task, task.test.take(slice(3)), base, vectors.deltas, blocks)
    assert len(calls) == times * len(vectors) * len(base)
    expected = linear_world.on_held_out(task, task.test.take(slice(3)), base, suite.task_vectors.deltas, blocks)
    assert torch.allclose(found["tangents"], expected["tangents"], rtol=1e-5, atol=1e-6)


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
    terms = merge_terms.linearised_terms(worlds, posteriors, scale, ALPHA)
    weights = Weights(ALPHA, BETA)
    theta = flat(combine(base, displacement, scale)).requires_grad_()
    risk = torch.zeros((), dtype=torch.float64)
    for a, task, world in zip(ALPHA, suite.tasks, worlds, strict=True):
        jacobian = dense_jacobian(task, base, world.held_out.inputs)
        scores = task.forward(base, world.held_out.inputs) + jacobian @ (theta - flat(base))
        risk = risk + a * F.cross_entropy(scores, world.labels)
    (gradient,) = torch.autograd.grad(risk, [theta])
    centre = sum(b * flat(tv.expert(j)) for j, b in enumerate(BETA))
    assert terms.risk.value == pytest.approx(float(risk.detach()), rel=1e-9)
    assert terms.gap.at(weights).value == pytest.approx(float(gradient @ (theta.detach() - centre)), rel=1e-8)
    for j in range(3):
        expected = float(gradient @ (theta.detach() - flat(tv.expert(j))))
        assert terms.gap.parts(weights)[j].value == pytest.approx(expected, rel=1e-8)
    gain = terms.gain.at(weights).value
    assert gain == pytest.approx(sum(b * e.value for b, e in zip(BETA, terms.gain.parts(weights), strict=True)))
    assert gain > 0


def test_gap_of_the_assumed_linear_reading_is_the_networks_directional_derivative(suite, worlds, artifact):
    tv, theta = suite.task_vectors, artifact.merged
    centre = {k: v + sum(b * d[k] for b, d in zip(BETA, tv.deltas, strict=True)) for k, v in tv.base.items()}
    network = merge_terms.network_at(suite.tasks, worlds, theta, centre)
    draws = network_world.PosteriorDraws([[w.scores0] * 3 for w in worlds], [], [w.labels for w in worlds])
    terms = merge_terms.assumed_linear_terms(worlds, network, draws, Weights(ALPHA, BETA))

    def risk(t):
        point = {k: centre[k] + t * (theta[k] - centre[k]) for k in theta}
        return sum(
            a * float(F.cross_entropy(task.forward(point, w.held_out.inputs), w.labels))
            for a, task, w in zip(ALPHA, suite.tasks, worlds, strict=True)
        )

    assert terms.gap.at(Weights(ALPHA, BETA)).value == pytest.approx((risk(1 + 1e-5) - risk(1 - 1e-5)) / 2e-5, rel=1e-6)
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


@pytest.fixture(scope="module")
def workspace(suite, artifact):
    settings = Settings(held_out=24, kernel=60, train=60, draws=10, points=3)
    return Workspace([Subject("merge", "out.pt", artifact)], lambda: suite, settings)


def at_scale(workspace, c):
    """Experts, gap and gain of (5) with anchors θ_0 + cτ_j, by the functions that serve c = 1."""
    subject, settings = workspace.subjects[0], workspace.plain_settings
    along, _ = workspace.merge_point(subject)
    side = workspace.experts
    worlds = [w.towards(t) for w, t in zip(side.worlds, along, strict=True)]
    statistics = [
        anchors.chosen(
            worlds[j], j, own=worlds[j].own_losses(c), displacement_sq=tuple(c * c * d for d in s.displacement_sq),
            size=s.n, paid=side.linear.prices(side.delta)[j], settings=settings, scale=c,
        )
        for j, s in enumerate(side.linear.statistics)
    ]  # fmt: skip
    draws = [
        [w.posterior_scores(j, s.sigma, settings.draws, settings.seed, c) for j, s in enumerate(statistics)]
        for w in worlds
    ]
    posteriors = anchors.LinearPosteriors(draws)
    moved = [dataclasses.replace(w, tangents=torch.cat([c * w.tangents[:-1], w.tangents[-1:]])) for w in worlds]
    terms = merge_terms.linearised_terms(moved, posteriors, 1.0, workspace.alpha)
    experts = Experts(statistics, cross_risk(anchors.risks(worlds, posteriors)), side.linear.log_choices)
    return experts, terms


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_at_any_anchors_the_bound_is_the_linear_risk_plus_their_slack(workspace, c):
    """(17): at c = 0 it is L^lin(θ_m) + Σβ_j s_j(0), to 1e-6; a bound without the Bregman gain is not."""
    experts, terms = at_scale(workspace, c)
    weights, delta = Weights(workspace.alpha, workspace.beta), workspace.plain_settings.delta
    (row,) = workspace.anchors([c])
    expected = terms.risk.value + sum(b * a.slack().value for b, a in zip(workspace.beta, row, strict=True))
    assert theorem2(experts, terms.merge, weights, delta=delta).value == pytest.approx(expected, abs=1e-6)
    no_gain = theorem2(experts, MergedModel(terms.gap), weights, delta=delta).value
    assert no_gain > expected + 1e-3
    if c == 0:
        assert all(a.kl == 0 and float(a.traces.sum()) == 0 for a in row)
        for a, world in zip(row, workspace.experts.worlds, strict=True):
            base = F.cross_entropy(world.scores0, world.labels)
            c_held = qsb_constant(F.cross_entropy(world.scores0, world.labels, reduction="none")[1::2])
            factor = amplification(a.eta, c_held)[0].value
            train = F.cross_entropy(world.train_scores0, world.train_labels)
            by_hand = factor * (float(train) + a.price / (a.eta * a.size)) - float(base)
            assert a.slack().value == pytest.approx(by_hand, rel=1e-9)


def test_the_n_of_a_nat_is_where_the_bound_has_it(workspace):
    """With that n in the place of |S_j|, the least slack over η, each with σ at its own fixed point, is one nat."""
    settings, side = workspace.plain_settings, workspace.experts
    (row,) = workspace.anchors([1.0])
    for j, (a, s, world) in enumerate(zip(row, side.linear.statistics, side.worlds, strict=True)):
        assert a.examples is not None
        found = []
        for eta in ETA_GRID:
            sigma = s.sigma
            for _ in range(6):
                draws = world.posterior_scores(j, sigma, settings.draws, settings.seed)
                risks, gradients = linear_world.losses(draws, world.labels), world.gradient_moments(draws)[1::2].mean(0)
                held = float(risks[1::2].square().mean() / risks[1::2].mean())
                if eta * held > 1:
                    break
                factor, b = 1 / (1 - eta * held / 2), eta / (2 - eta * held)
                moved, kernel = torch.tensor(s.displacement_sq), torch.tensor([k.value for k in s.kernel])
                weights = factor * kernel.double() / 4 + b * gradients
                square = (factor * moved.double() / (2 * eta * a.examples * weights)).sqrt()
                kl = float((moved / (2 * square))[moved > 0].sum())
                brace = factor * (float(a.own.mean()) + (kl + a.price) / (eta * a.examples)) + float(square @ weights)
                sigma = tuple(float(v) ** 0.5 for v in square)
            else:
                found.append(brace - float(risks.mean()))
        assert min(found) == pytest.approx(1.0, abs=0.05)
        assert a.examples != s.n


def test_halves_drawn_again_give_the_bound_on_those_halves(workspace):
    (row,) = workspace.anchors([1.0])
    anchor, count = row[0], 6
    assert len(anchor.own) == anchor.size  # all of S_j: not drawn again
    halves = slack.drawn_halves(24, count, 3)
    assert halves.choosing.shape == halves.reporting.shape == (count, 12)
    found = slack.repeated(anchor, halves, 3)
    for r in range(count):
        risks, flat = anchor.risks, anchor.flatness

        def brace(eta, part, risks=risks, flat=flat):
            qsb = float(risks[part].square().mean() / risks[part].mean())
            a = 1 / (1 - eta * qsb / 2)
            own, noise = float(anchor.own.mean()), 0.25 * float(anchor.traces.mean())
            return a * (own + noise + (anchor.kl + anchor.price) / (eta * anchor.size)) + eta / 2 * a * float(
                flat[part].mean()
            )

        choosing, reporting = halves.choosing[r], halves.reporting[r]
        allowed = [eta for eta in ETA_GRID if eta * float(qsb_constant(risks[choosing]).value) < 2]
        eta = min(allowed, key=lambda eta, part=choosing: brace(eta, part))
        eta = anchors.guarded_eta(eta, qsb_constant(risks[reporting]).value)
        assert float(found[r]) == pytest.approx(brace(eta, reporting) - float(risks[reporting].mean()), rel=1e-9)
        assert float(found[r]) != pytest.approx(brace(eta, choosing) - float(risks[choosing].mean()), rel=1e-3)


def test_training_examples_are_drawn_again_where_they_are_a_subsample(workspace):
    (row,) = workspace.anchors([1.0])
    halves = slack.drawn_halves(24, 400, 0)
    whole, other = (slack.repeated(row[0], halves, seed) for seed in (0, 9))
    assert torch.equal(whole, other)  # the seed is that of the training examples, which are all of S_j
    few = dataclasses.replace(row[0], size=600)
    first, second = (slack.repeated(few, halves, seed) for seed in (0, 9))
    assert not torch.equal(first, second)
    assert float(first.mean()) == pytest.approx(float(second.mean()), abs=4 * float(first.std()) / 20)


def test_the_spread_is_the_standard_error_of_a_half():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    spread = slack.spread(slack.means(values, slack.drawn_halves(40, 4000, 0).reporting))
    assert spread.stderr == pytest.approx(float(values.std()) / math.sqrt(20), rel=0.05)
    assert spread.value == pytest.approx(float(values.mean()), abs=0.02)


def made_up(first, second, **changes):
    """Return an anchor whose loss is ``first`` on the choosing and ``second`` on the reporting half, nearly."""
    risks = torch.tensor([first, second, first + 0.01, second + 0.01] * 3, dtype=torch.float64)
    zero = torch.zeros(12, dtype=torch.float64)
    numbers = {"c": 1.0, "size": 100, "moved": 1.0, "price": 5.0, "eta": 0.25, "kl": 10.0}
    parts = {"own": zero[:4] + 0.5, "traces": zero[:4] + 1.0, "risks": risks, "flatness": zero + 0.1, "point": risks}
    return slack.Anchor(**{**numbers, **parts, **changes})


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    """An expert that looks best by luck on the choosing half: its slack there must not be the one reported."""
    lucky, steady = made_up(1.2, 0.6), made_up(0.9, 0.9)
    choice = slack.best_of([steady, lucky])
    assert choice.place == 1
    assert choice.chosen.value == lucky.on_half(0).value
    assert choice.reported.value == lucky.on_half(1).value
    assert choice.reported.value > choice.chosen.value + 0.3  # who reports on the choosing half says the smaller one
    assert choice.reported.value > steady.on_half(1).value
    assert slack.best_of([lucky, steady]).place == 0


def test_gradient_and_derivatives_of_training_examples_are_the_linearised_networks(suite, worlds, displacement):
    base = suite.task_vectors.base
    for i, (task, world) in enumerate(zip(suite.tasks, worlds, strict=True)):
        sample = linear_world.subsample(task.train, 60, 0).take(slice(12))
        assert sample.labels is not None
        products = forms.training_products(task, sample, base, displacement)
        jacobian = dense_jacobian(task, base, sample.inputs)
        assert torch.allclose(products["tangents"], jacobian @ flat(displacement), rtol=1e-8, atol=1e-10)
        oracle = gradient_norm(linearize(task.forward, base), combine(base, displacement, 1.0), sample).total
        assert float(products["gradient_sq"]) == pytest.approx(oracle**2, rel=1e-8)
        found = forms.training_at_merge(world, products, 60)
        assert sample.labels is not None
        apart = subtract(suite.task_vectors.deltas[i], displacement)
        change = jacobian @ flat(apart)
        change = change - change.mean(dim=1, keepdim=True)
        assert torch.allclose(found.towards, change.square().sum(dim=1), rtol=1e-7, atol=1e-10)
        merged = linear_scores(task, base, combine(base, displacement, 1.0), sample.inputs)
        assert torch.allclose(found.losses, F.cross_entropy(merged, sample.labels, reduction="none"), rtol=1e-7)
        # (6) on these examples: from the merge to the expert
        own = F.cross_entropy(linear_scores(task, base, suite.task_vectors.expert(i), sample.inputs), sample.labels)
        length = float(flat(apart).norm())
        six = float(found.losses.mean()) + math.sqrt(found.gradient_sq) * length + 0.25 * float(found.towards.mean())
        assert float(own) <= six
