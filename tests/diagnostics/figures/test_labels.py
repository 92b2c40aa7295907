import itertools

import pytest

from diagnostics.figures.labels import label_ends, series, spaced
from diagnostics.figures.style import new_figure


def test_names_that_would_overlap_are_moved_apart_and_others_stay():
    assert spaced([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    found = spaced([0.5, 0.5, 0.52, 0.98, 0.99], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(found))
    assert found[-1] <= 1.0
    assert spaced([], 0.1) == []


def test_series_can_be_told_apart():
    looks = [tuple(series(k).values()) for k in range(24)]
    assert len(set(looks)) == 24


def test_every_end_is_named_within_the_height_of_the_axes():
    figure = new_figure(3.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    label_ends(axes, [(1.0, 0.5, "one", "k"), (1.0, 0.5, "two", "k")])
    heights = [text.get_position()[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]
    assert abs(heights[1] - heights[0]) > 0.03
    assert all(height == pytest.approx(0.5, abs=0.15) for height in heights)
