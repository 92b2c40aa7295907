"""The gradient and the sharpness on ``toy``; eigenvalues of the Hessian in coefficients, with errors over groups."""

import math

import pytest
import torch

from diagnostics.sections import flatness
from diagnostics.sections.flatness import coefficient_eigenvalues
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge
from merging.suites import toy

ALPHA = (0.25, 0.75)


def hessians(groups, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for scale in (1.0, 2.0):
        noise = torch.randn(groups, 3, 3, generator=generator, dtype=torch.float64)
        found.append(scale * torch.diag(torch.tensor([3.0, 1.0, -1.0])).double() + spread * (noise + noise.mT) / 2)
    return found


def test_values_are_those_of_the_weighted_mean():
    found = hessians(8, 0.3)
    whole = sum(a * h.mean(dim=0) for a, h in zip(ALPHA, found, strict=True))
    values = torch.linalg.eigvalsh(whole).flip(0)
    got = coefficient_eigenvalues(found, ALPHA)
    assert [e.value for e in got] == pytest.approx(values.tolist())
    assert all(e.n == 16 and e.status == "estimated" for e in got)
    assert coefficient_eigenvalues([], ()) == ()


def test_errors_are_those_of_repetition():
    runs = [coefficient_eigenvalues(hessians(8, 0.3, seed), ALPHA) for seed in range(300)]
    for k in range(3):
        spread = torch.tensor([run[k].value for run in runs]).std()
        claimed = torch.tensor([run[k].stderr for run in runs]).square().mean().sqrt()
        assert float(claimed) == pytest.approx(float(spread), rel=0.15)


def test_one_direction_has_the_error_of_a_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    (got,) = coefficient_eigenvalues([values.view(4, 1, 1)], (1.0,))
    assert (got.value, got.stderr) == (4.0, pytest.approx(float(values.std()) / math.sqrt(4)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The section for unequal weights of the tasks, with the suite, the merge and the folder of its pieces."""
    suite, folder = toy.build(overlap=0.3), tmp_path_factory.mktemp("cache")
    artifact = merge("task_arithmetic", suite, scale=0.5)
    settings = Settings(held_out=20, kernel=4, train=8)
    space = Workspace([Subject("m", "m.pt", artifact)], lambda: suite, settings, Cache(folder), (0.5, 0.3, 0.2))
    return flatness.compute(space, space.subjects[0]), space, artifact, folder


def risk_of(space, task, theta, detached=True):
    sample = space.held_out(task)
    theta = {name: value.detach() if detached else value for name, value in theta.items()}
    return torch.nn.functional.cross_entropy(task.forward(theta, sample.inputs), sample.labels)


def test_the_gradient_is_that_of_the_weighted_risk(measured):
    """One backward pass through Σ_t α_t L̂_t, against norms made of the tasks' gradients one after the other."""
    found, space, artifact, _ = measured
    leaves = {name: value.clone().requires_grad_() for name, value in artifact.merged.items()}
    losses = [a * risk_of(space, t, leaves, False) for a, t in zip(space.alpha, space.suite.tasks, strict=True)]
    torch.stack(losses).sum().backward()
    for block, names in space.blocks.items():
        square = sum(float(leaves[name].grad.double().square().sum()) for name in names)
        assert found.gradient_per_block[block] == pytest.approx(square**0.5, rel=1e-5)
    whole = sum(float(leaf.grad.double().square().sum()) for leaf in leaves.values())
    assert found.gradient_norm == pytest.approx(whole**0.5, rel=1e-5)


def test_sharpness_is_the_loss_after_one_step_up_the_gradient(measured):
    found, space, artifact, _ = measured
    for index, task in enumerate(space.suite.tasks):
        leaves = {name: value.clone().requires_grad_() for name, value in artifact.merged.items()}
        risk_of(space, task, leaves, False).backward()
        loss = risk_of(space, task, leaves)
        norm = torch.stack([leaf.grad.double().square().sum() for leaf in leaves.values()]).sum().sqrt()
        up = {name: leaf.detach() + found.rho * leaf.grad / norm for name, leaf in leaves.items()}
        assert found.sharpness_weights[index] == pytest.approx(float(risk_of(space, task, up) - loss), abs=1e-5)
        deltas = space.vectors.deltas
        slope = torch.stack([torch.stack([(d[n] * leaves[n].grad).sum() for n in d]).sum() for d in deltas])
        step = found.rho * slope / slope.norm()
        up = {n: leaf.detach() + sum(s * d[n] for s, d in zip(step, deltas, strict=True)) for n, leaf in leaves.items()}
        assert found.sharpness_coefficients[index] == pytest.approx(float(risk_of(space, task, up) - loss), abs=1e-5)


def test_no_piece_keeps_a_gradient(measured):
    """One number per block for all tasks; for each task its two sharpnesses."""
    _, space, _, folder = measured
    kept = {file.name.rsplit("-", 1)[0]: torch.load(file, weights_only=False)["value"] for file in folder.glob("*.pt")}
    assert len(kept["gradient-0"]["squares"]) == len(space.blocks)
    assert "gradient-1" not in kept
    for index in range(3):
        assert all(isinstance(value, (int, float)) for value in kept[f"sharpness-{index}"].values())
