"""What every certified statement is, whatever kind of task it is about: its row, its units, its figure, its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from diagnostics.figures.svg import FAINT, INK
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from merging.methods import METHODS, POST_PROCESSINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS, DIFFERENCE, IN_NATS, NATS_DIFFERENCE = "error", "difference of errors", "nats", "difference in nats"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One statement: with probability 1 - ``delta`` the mean of what ``name`` says is at most ``value``.

    ``unit`` is "error" (0-1), "nats", or "difference of errors" or "in nats" (sign kept: a negative one is a certified
    gain).
    ``observed`` is the mean over the ``n`` validation examples, rectified by ``unlabelled`` inputs where there are any;
    ``test_error`` is the same quantity on the test split, for comparison. Every row holds on its own.
    """

    equation: str
    name: str
    about: str
    unit: str
    observed: float
    value: float
    n: int
    unlabelled: int
    delta: float
    test_error: float
    assumptions: tuple[str, ...]


class Certified(Protocol):
    """Certificates of one merge: what it did with the validation labels, and what δ was divided by."""

    @property
    def use(self) -> str:
        """What the merge did with the validation labels."""
        ...

    @property
    def models_looked_at(self) -> int:
        """What δ was divided by (0: unknown)."""
        ...


def validation_use(subject: Subject) -> tuple[int | None, str]:
    """How many models the merge looked at on the validation labels (None: unknown), and what it did, in words."""
    artifact = subject.artifact
    method, used = artifact.label, artifact.used
    if used is None:
        return None, f"what {method} did with the validation labels is unknown (merge again): no held-out certificate"
    found = METHODS.get(artifact.method)
    rows = [row for row in (found, *(POST_PROCESSINGS.get(name) for name in artifact.then)) if row]
    needs = found.needs_text if found else " and ".join(used) or "nothing"
    if "validation" in used:
        tried = used["validation"]
        if tried:
            return tried, f"{method} chose among {tried} fixed candidates on the validation labels: δ/{tried} each"
        return None, f"{method} needs {needs} and does not say how many models it tried: no held-out certificate"
    if any("validation" in row.needs_of(row.settings()) for row in rows):
        return 1, f"{method} with a given scale: a fixed model, if the scale was not chosen on these labels"
    return 1, f"{method} needs {needs}; the validation split is unused: a fixed model"


def in_unit(value: float, unit: str) -> str:
    """Return a value as it is shown: nats with three decimals, rates in per cent, differences with their sign."""
    if unit in (IN_NATS, NATS_DIFFERENCE):
        return (f"{value:.3f}" if unit == IN_NATS else f"{value:+.3f}").replace("-", "−")
    return f"{100 * value:+.1f}".replace("-", "−") if unit == DIFFERENCE else f"{100 * value:.1f}"


def drawn(
    entries: Sequence[tuple[str, float, float, float]],
    label: str,
    *,
    observed: str,
    test: str,
    columns: int,
    scale: float = 1.0,
) -> tuple[Figure, Axes]:
    """Draw statements, a row each, from the top: what was observed, what is certified and what the test split has.

    Args:
        entries: name, observed, certified and test value.
        label: of the axis of values.
        observed: what the first mark means.
        test: what the last mark means.
        columns: of the legend.
        scale: by which values are multiplied.
    """
    from diagnostics.figures import style

    figure = style.new_figure(1.2 + 0.27 * max(1, len(entries)))
    axes = figure.subplots()
    for row, (_, *values) in enumerate(entries):
        at = [scale * value for value in values]
        axes.plot(at[:2], [row, row], color=FAINT, linewidth=1.2, zorder=1)
        for x, colour, marker, meaning in (
            (at[0], style.BLUE, "o", observed),
            (at[1], style.VERMILION, "|", "certified, at most"),
            (at[2], INK, "x", test),
        ):
            size = 11 if marker == "|" else 5
            axes.plot(
                x, row, color=colour, marker=marker, markersize=size, markeredgewidth=1.6, linestyle="",
                label=None if row else meaning,
            )  # fmt: skip
    axes.set_yticks(range(len(entries)), [entry[0] for entry in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel(label)
    style.legend_below(figure, axes, columns)
    return figure, axes


def unused_labels(label: str, count: str, part: Certified) -> Assumption:
    """Say that certificates of a merge rest on labels that it did not use."""
    what = f"certificates of {label} rest on unused labels"
    return Assumption(what, f"n = {count}, δ/{part.models_looked_at or '?'}", part.use)
