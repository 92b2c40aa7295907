"""The figure: every row with its error, in order, and which are not told apart from the best."""

from dataclasses import replace

import pytest

from bounds.types import Estimate
from merging.commands import compare_figure
from merging.commands.compare_figure import KINDS, draw, kind_of
from merging.commands.compare_rows import OverSeeds, Row


def row(label, mean, rank, *, error=0.01, apart=True, passes=0.0):
    return Row(
        label=label,
        method=label.partition(":")[0],
        settings={},
        rank=rank,
        mean=OverSeeds(mean),
        sampled=Estimate(mean, error),
        told_apart={} if rank in (1, None) else {"best": apart},
        passes=passes,
    )


ROWS = [
    row("experts", 0.9, None),
    row("samerging", 0.8, 1, passes=100.0),
    row("fisher", 0.79, 2, apart=False),
    row("average", 0.6, 3),
    row("pretrained", 0.5, None),
]


def test_rows_are_told_apart_by_what_they_use():
    assert [kind_of(found) for found in ROWS] == ["reference", "gradients", "data, no gradient", "no data", "reference"]


def test_what_follows_counts_as_what_is_used():
    average = row("average", 0.6, 3)
    assert kind_of(replace(average, then={"svc": {}})) == "no data"
    assert kind_of(replace(average, then={"lines": {"rise": 0.5}})) == "no data"
    assert kind_of(replace(average, then={"lines": {}})) == "data, no gradient"


def points(rows):
    """Place, accuracy, half the width of the bar and fill of each point, from the top."""
    figure = compare_figure._figure(rows, "toy")
    axes = figure.axes[0]
    result = []
    for container in axes.containers:
        line, _, bars = container.lines  # pyright: ignore[reportAttributeAccessIssue]
        ((left, _), (right, _)) = bars[0].get_segments()[0] if bars else ((0, 0), (0, 0))
        result.append((*line.get_ydata(), *line.get_xdata(), (right - left) / 2, line.get_markerfacecolor() != "white"))
    return figure, sorted(result)


def test_points_have_their_errors_and_are_filled_near_the_best():
    figure, found = points(ROWS)
    assert [x for _, x, _, _ in found] == pytest.approx([90, 80, 79, 60, 50])
    assert [error for _, _, error, _ in found] == pytest.approx([1.0] * 5)
    assert [filled for *_, filled in found] == [False, True, True, False, False]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [found.label for found in ROWS]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(KINDS)


def test_an_error_that_is_unknown_has_no_bar():
    _, found = points([row("average", 0.6, 1, error=float("inf"))])
    assert [error for _, _, error, _ in found] == [0]


def test_long_labels_wrap_and_leave_the_axes_their_room():
    long = replace(ROWS[3], label="average:" + ",".join(f"setting{i}=0.25" for i in range(9)))
    figure, found = points([*ROWS, long, replace(ROWS[3], label="x" * 90)])
    assert [y for y, *_ in found] == sorted(y for y, *_ in found)
    figure.canvas.draw()
    assert figure.axes[0].get_position().width > 0.4


def test_both_files_are_the_same_every_time_and_names_are_no_formulas():
    rows = [*ROWS, replace(ROWS[3], label="average:a=$x$")] * 6
    first = draw(rows, "a$b$")
    assert first == draw(rows, "a$b$")
    assert first["png"].startswith(b"\x89PNG")
    svg = first["svg"].decode()
    assert ">average:a=$x$<" in svg
    assert ">merges of a$b$<" in svg
