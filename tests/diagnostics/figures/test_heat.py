"""Heat maps: what the colours of a cell compare it with."""

import numpy as np
import pytest

from diagnostics.figures import style
from diagnostics.figures.heat import heat, name_axes

VALUES = [[0.1, 0.3, 0.2], [10.0, 40.0, 20.0]]


def drawn(values, scale):
    axes = style.new_figure(2).subplots()
    heat(axes, values, "cividis", [[f"{v:g}" for v in row] for row in values], scale=scale)
    name_axes(axes, ["a", "b"], ["x", "y", "z"])
    (mesh,) = axes.collections
    assert [text.get_text() for text in axes.texts] == [f"{v:g}" for row in values for v in row]
    return np.array(mesh.get_array()).reshape(len(values), -1), mesh.get_clim()


def test_rows_are_alike_whatever_their_size():
    cells, limits = drawn(VALUES, "rows")
    assert cells == pytest.approx(np.array([[0, 1, 0.5], [0, 1, 1 / 3]]))
    assert limits == (0, 1)


def test_signed_rows_reach_their_largest_magnitude_and_keep_zero():
    cells, limits = drawn([[-2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], "signed rows")
    assert cells == pytest.approx(np.array([[-1, 0.5, 0], [0, 0, 0]]))
    assert limits == (-1, 1)


def test_other_scales_leave_the_values():
    cells, limits = drawn(VALUES, "share")
    assert cells == pytest.approx(np.array(VALUES))
    assert limits == (0, 1)
