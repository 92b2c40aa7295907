"""Fine-tuning learns and follows its seed; the kept change is the best one of its rank."""

import pytest
import torch

from bounds.types import Sample
from merging.suites.text8.training import Training, fine_tune, permuted


def forward(params, inputs):
    return inputs @ params["weight"].T + params["bias"]


BASE = {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}


@pytest.fixture
def train():
    inputs = torch.randn(64, 5)
    return Sample(inputs, inputs[:, :3].argmax(dim=1))


def test_the_loss_falls_and_theta_0_stays(train):
    training = Training(rate=0.1, epochs=10, batch=10)
    theta, curve = fine_tune("t", forward, BASE, train, training, 0)
    assert len(curve) == 70
    assert sum(curve[-7:]) < 0.5 * sum(curve[:7])
    assert float(BASE["weight"].abs().max()) == 0
    assert not any(value.requires_grad for value in theta.values())


def test_the_order_follows_seed_and_name(train):
    training = Training(rate=0.1, batch=8)
    first, again, other, named = (
        fine_tune(name, forward, BASE, train, training, seed)[0]["weight"]
        for name, seed in (("t", 0), ("t", 0), ("t", 1), ("u", 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, named)


def test_permuted_labels_are_the_same_labels_on_other_examples(train):
    found = permuted("t", train, 0)
    assert found.inputs is train.inputs
    assert found.labels is not None
    assert train.labels is not None
    assert torch.equal(found.labels.bincount(), train.labels.bincount())
    assert not torch.equal(found.labels, train.labels)
    assert torch.equal(found.labels, permuted("t", train, 0).labels)  # pyright: ignore
