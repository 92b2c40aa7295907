"""Prediction-powered inference: by hand, coverage on a finite population, and what a wrong version would cover."""

import math

import pytest
import torch

from bounds.prediction_powered import prediction_powered
from bounds.types import InputError


def test_by_hand():
    found = prediction_powered(torch.tensor([0.1, 0.3, 0.2, 0.4]), torch.tensor([0.2, 0.5]), torch.tensor([0.0, 1.0]))
    assert found.predicted.value == pytest.approx(0.25)
    assert found.rectifier.value == pytest.approx(0.15)
    assert found.rectified.value == pytest.approx(0.4)
    variance = (0.05 / 3) / 4 + (0.35**2 * 2) / 2  # sums of squares 0.05 and 2 · 0.35², over n - 1, over n
    assert found.rectified.stderr == pytest.approx(math.sqrt(variance))
    assert found.rectified.n == 6
    assert (found.predicted.status, found.rectified.status) == ("assumed", "estimated")


def test_it_covers_a_population_that_the_predictions_misjudge():
    """Predictions are .1 too low; 2000 pairs of samples: the rectified mean covers, the prediction never does."""
    generator = torch.Generator().manual_seed(0)
    chance = 0.2 + 0.6 * torch.rand(20000, generator=generator, dtype=torch.float64)
    outcome = torch.bernoulli(chance, generator=generator)
    predictions, truth = chance - 0.1, float(outcome.mean())
    covered = {"rectified": 0, "predicted": 0, "rectifier's error left out": 0, "sign turned": 0}
    for _ in range(2000):
        rows = torch.randint(20000, (900,), generator=generator)
        many, few = rows[:700], rows[700:]
        found = prediction_powered(predictions[many], predictions[few], outcome[few])
        right, error = found.rectified, abs(found.rectified.value - truth)
        covered["rectified"] += error <= 1.96 * right.stderr
        covered["predicted"] += abs(found.predicted.value - truth) <= 1.96 * found.predicted.stderr
        covered["rectifier's error left out"] += error <= 1.96 * found.predicted.stderr
        turned = found.predicted.value - found.rectifier.value
        covered["sign turned"] += abs(turned - truth) <= 1.96 * right.stderr
    assert 0.935 <= covered.pop("rectified") / 2000 <= 0.965
    assert all(count / 2000 < 0.8 for count in covered.values()), covered


@pytest.mark.parametrize(
    "given",
    [
        (torch.zeros(0), torch.zeros(2), torch.zeros(2)),
        (torch.zeros(3), torch.zeros(0), torch.zeros(0)),
        (torch.zeros(3), torch.zeros(2), torch.zeros(3)),
        (torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, 1)),
        (torch.tensor([math.nan]), torch.zeros(2), torch.zeros(2)),
        (torch.zeros(3), torch.zeros(2), torch.tensor([0.0, math.inf])),
    ],
)
def test_bad_samples_are_refused(given):
    with pytest.raises(InputError):
        prediction_powered(*given)
