"""Means on the sphere against angles on a circle, spherical interpolation of two, and a numerical minimiser."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bounds.types import InputError
from merging import TaskVectors, merge
from merging.closed_form.slerp import interpolate
from merging.closed_form.sphere import karcher_mean, projected_mean, tangent_mean
from tests.tolerances import assert_near

EXACT = {"tolerance": 1e-13, "steps": 500}


def on_circle(*angles):
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


def drawn(tasks, size, common, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    return points + common * torch.randn(size, generator=generator, dtype=torch.float64)


def angles_squared(direction, points):
    """Σ_t of the squared angle between a direction and each point, in NumPy."""
    cosines = points @ direction / np.linalg.norm(points, axis=1) / np.linalg.norm(direction)
    return float((np.arccos(np.clip(cosines, -1, 1)) ** 2).sum())


@pytest.mark.parametrize("angles", [(0.1, 0.4), (-0.9, 0.2, 1.3), (0.0, 0.0, 1.5, 0.7)])
def test_on_a_circle_the_karcher_mean_is_the_mean_angle(angles):
    mean = sum(angles) / len(angles)
    assert_near(karcher_mean(on_circle(*angles), **EXACT), on_circle(mean)[0])


def test_the_mean_of_the_vectors_is_another_direction():
    """So is what one step from it gives, away from a circle: the oracles tell the fixed point from its start."""
    assert float((projected_mean(on_circle(-0.9, 0.2, 1.5)) - on_circle(0.8 / 3)[0]).norm()) > 1e-3
    points = drawn(5, 6, 0.7)
    mean = karcher_mean(points, **EXACT)
    assert float((karcher_mean(points, 0.0, 1) - mean).norm()) > 1e-3
    assert float((karcher_mean(points, 0.1, 100) - mean).norm()) > 1e-3, "the tolerance ends it"


@pytest.mark.parametrize(("tasks", "size", "common"), [(3, 4, 1.0), (5, 6, 0.7), (8, 3, 2.0)])
def test_the_karcher_mean_has_the_least_squared_angles(tasks, size, common):
    points = drawn(tasks, size, common)
    found = karcher_mean(points, **EXACT)
    start = projected_mean(points).numpy()
    least = minimize(angles_squared, start, args=(points.numpy(),), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(found / found.norm(), least / np.linalg.norm(least), atol=2e-6)
    assert angles_squared(found.numpy(), points.numpy()) < angles_squared(start, points.numpy())
    assert float(found.norm()) == pytest.approx(float(points.norm(dim=1).mean())), "the mean length"


@pytest.mark.parametrize("mean", [projected_mean, lambda points: karcher_mean(points, **EXACT)])
def test_of_two_it_is_halfway_on_the_great_circle(mean):
    first, second = drawn(2, 7, 0.5)
    second *= first.norm() / second.norm()
    assert_near(mean(torch.stack([first, second])), interpolate(first, second, 0.5))


def test_the_detour_over_the_tangent_space_changes_nothing():
    """Multi-SLERP as it is defined: to the tangent space at the mean direction, the mean there, and back."""
    points = drawn(5, 6, 0.3)
    lengths = [float(point.norm()) for point in points]
    directions = [point / length for point, length in zip(points, lengths, strict=True)]
    at = sum(directions, torch.zeros(6).double())
    at = at / at.norm()
    tangent = sum((d - (d @ at) * at for d in directions), torch.zeros(6).double()) / 5
    assert float(tangent.norm()) < 1e-15
    assert_near(projected_mean(points), at * sum(lengths) / 5)


def test_logarithms_have_the_length_of_the_angle():
    at, points = on_circle(0.3)[0], on_circle(0.3 + 2.5)
    assert float(tangent_mean(at, points).norm()) == pytest.approx(2.5)
    assert float(tangent_mean(at, points) @ at) == pytest.approx(0.0, abs=1e-15)
    assert tangent_mean(at, torch.stack([at, -at, 0 * at])).norm() < 1e-15


@pytest.mark.parametrize("mean", [projected_mean, lambda points: karcher_mean(points, **EXACT)])
def test_a_point_that_is_zero_has_length_but_no_direction(mean):
    points = torch.stack([*on_circle(0.1, 0.5), torch.zeros(2).double()])
    assert_near(mean(points), on_circle(0.3)[0] * 2 / 3)
    assert mean(torch.zeros(3, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("mean", [projected_mean, lambda points: karcher_mean(points, **EXACT)])
def test_where_directions_cancel_the_points_are_averaged(mean):
    points = torch.tensor([[3.0, 0], [-1.0, 0]]).double()
    assert mean(points).tolist() == [1, 0]
    turned = on_circle(0, 2 * math.pi / 3, 4 * math.pi / 3)
    assert_near(1 + mean(turned), torch.ones(2))


@pytest.mark.parametrize("method", ["multi_slerp", "karcher"])
def test_the_centre_says_whose_directions_are_averaged(method):
    base, (first, second) = torch.tensor([[1.0, 2.0], [0.5, -1]]).double(), drawn(2, 4, 1.0).view(2, 2, 2)
    tv = TaskVectors.from_experts({"w": base}, {"one": {"w": base + first}, "two": {"w": base + second}})
    mean = projected_mean if method == "multi_slerp" else lambda points: karcher_mean(points, **EXACT)
    settings = EXACT if method == "karcher" else {}
    weights = mean(torch.stack([base + first, base + second]).flatten(1)).view(2, 2)
    assert_near(merge(method, tv, (), **settings).merged["w"], weights)
    changes = mean(torch.stack([first, second]).flatten(1)).view(2, 2)
    assert_near(merge(method, tv, (), centre="base", **settings).merged["w"], base + changes)
    with pytest.raises(InputError, match="centre: expected zero or base"):
        merge(method, tv, (), centre="middle")
