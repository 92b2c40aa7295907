"""Normalised gains out of published accuracies."""

import pytest

from merging.suites.published import gains


def test_gains_lie_between_the_pretrained_model_and_the_experts_of_the_same_table():
    found = gains("clip-ta8:ViT-B-32")
    rounded = {row: round(value, 2) for row, value in found.items()}
    assert rounded == {
        "pretrained": 0.0,
        "experts": 1.0,
        "average": 0.43,
        "task_arithmetic": 0.47,
        "ties": 0.57,
        "regmean": 0.81,
        "adamerging": 0.82,
        "iso_c": 0.82,
        "tsv_m": 0.83,
        "wudi": 0.86,
        "samerging": 0.92,
    }
    assert found["samerging"] == pytest.approx((87.1 - 48.1) / (90.4 - 48.1))


@pytest.mark.parametrize("suite", ["toy", "clip-tall14:ViT-B-32"])
def test_without_a_published_merge_there_are_none(suite):
    assert gains(suite) == {}
