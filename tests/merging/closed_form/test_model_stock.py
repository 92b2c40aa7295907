"""Model Stock against the geometry that it is derived from, solved by least squares."""

import math

import pytest
import torch

from merging import TaskVectors, merge, merged
from merging.closed_form import model_stock
from merging.closed_form.model_stock import mean_cosine, stock_share
from tests.tolerances import assert_near


def frame(size, count, seed=0):
    """``count`` orthonormal vectors of R^size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0].T


def world(tasks, distance, spread, size=12):
    """θ_0, experts around a centre that sees θ_0 and all of them at right angles, and the centre itself."""
    axes = frame(size, tasks + 1)
    base = torch.linspace(-1, 1, size, dtype=torch.float64)
    centre = base + distance * axes[0]
    return base, [centre + spread * axis for axis in axes[1:]], centre


def nearest(base, experts, centre):
    """Point of the plane through θ_0 and the experts that is nearest to the centre, by least squares."""
    directions = torch.stack([expert - base for expert in experts], dim=1)
    return base + directions @ torch.linalg.lstsq(directions, centre - base).solution


def vectors(base, *experts):
    return TaskVectors.from_experts({"w": base}, {f"task{t}": {"w": value} for t, value in enumerate(experts)})


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize(("distance", "spread"), [(1.0, 1.0), (0.3, 2.0), (2.0, 0.1)])
def test_it_is_the_nearest_point_to_the_centre(tasks, distance, spread):
    base, experts, centre = world(tasks, distance, spread)
    assert_near(merge("model_stock", vectors(base, *experts), ()).merged["w"], nearest(base, experts, centre))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda cosine, tasks: 2 * cosine / (1 + cosine),  # the formula of two experts
        lambda cosine, tasks: cosine,
        lambda cosine, tasks: 1.0,  # averaging
    ],
)
def test_other_shares_are_not(wrong, monkeypatch):
    base, experts, centre = world(3, 1.0, 1.0)
    monkeypatch.setattr(model_stock, "stock_share", wrong)
    found = merge("model_stock", vectors(base, *experts), ()).merged["w"]
    assert float((found - nearest(base, experts, centre)).abs().max()) > 0.01


def test_by_hand():
    """60 degrees apart: t = 2·½ / (1 + ½) = ⅔ of the mean."""
    tv = vectors(torch.zeros(2).double(), *torch.tensor([[1.0, 0], [1.5, 1.5 * math.sqrt(3)]]).double())
    found = merge("model_stock", tv, ())
    assert found.merged["w"].tolist() == pytest.approx([2 / 3 * 1.25, 2 / 3 * 0.75 * math.sqrt(3)])
    assert found.coefficients is not None
    assert_near(found.coefficients, torch.full((2, 1), 1 / 3))


def test_each_tensor_has_its_own_angle_and_coefficient():
    base = {"a": torch.zeros(2).double(), "b": torch.zeros(2).double()}
    experts = {
        "one": {"a": torch.tensor([1.0, 0]).double(), "b": torch.tensor([1.0, 0]).double()},
        "two": {"a": torch.tensor([2.0, 0]).double(), "b": torch.tensor([0, 1.0]).double()},
    }
    tv = TaskVectors.from_experts(base, experts)
    found = merge("model_stock", tv, ())
    assert {name: value.tolist() for name, value in found.merged.items()} == {"a": [1.5, 0], "b": [0, 0]}
    assert found.coefficients is not None
    for name, value in merged(tv, found.coefficients, found.blocks).items():
        assert_near(found.merged[name], value)


def test_experts_that_do_not_agree_leave_the_base():
    """A cosine below 0 would go away from the mean, without bound near -1/(T - 1)."""
    opposite = torch.tensor([[1.0, 0], [-1, 1e-3], [0, 0]]).double()
    assert merge("model_stock", vectors(torch.ones(2).double(), *(1 + opposite)), ()).merged["w"].tolist() == [1, 1]
    assert stock_share(-0.4, 3) == stock_share(0.0, 3) == 0.0
    assert stock_share(1.0, 5) == 1.0


def test_the_mean_cosine_is_over_pairs():
    assert mean_cosine([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]]) == pytest.approx(0.5)
    assert mean_cosine([[1.0]]) == 1.0
