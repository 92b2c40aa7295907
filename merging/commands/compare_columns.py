"""What a comparison shows of a row: accuracy where an example has one label, perplexity where every token has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bounds.types import Estimate
from merging.commands.compare_rows import OverSeeds, Row
from merging.commands.evaluation import mean
from merging.sequences import perplexity

NEAR = "≈"
"""Marks a difference of less than two standard errors."""
_COSTS = (
    "distance ‖θ_m − θ_0‖; seconds: wall time of the merge; search: that of its search for a scale on validation, not "
    "in seconds; passes: examples that went forward and backward; MiB: peak resident memory of a process of its own "
    "that loads the suite and merges; all means over seeds"
)


@dataclass(frozen=True)
class Column:
    """A figure of a row: what it is, how it is written, times what, and the comparison whose ``≈`` it carries."""

    value: Callable[[Row], Estimate | OverSeeds | float | None]
    form: str
    factor: float = 1.0
    marked: str = ""

    def numbers(self, row: Row) -> tuple[str, str]:
        """Return the figure and its standard error as text, empty where there is none."""
        found = self.value(row)
        if found is None:
            return "", ""
        value, error = (found, None) if isinstance(found, (int, float)) else (found.value, found.stderr)
        shown = format(abs(self.factor) * error, self.form.removeprefix("+")) if error else ""
        return format(self.factor * value, self.form), shown

    def cell(self, row: Row) -> str:
        """Return the figure with its error and its mark, in one cell."""
        number, error = self.numbers(row)
        if self.marked == "best" and row.is_best:
            return "best"
        near = row.told_apart.get(self.marked) is False
        return number + (f" ± {error}" if error else "") + (f" {NEAR}" if near else "")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """All that a comparison of one kind of task shows.

    ``ranking`` and ``costs`` are the columns of the first two tables; ``by_task`` is the title of the third and how a
    row's figure of a task is written; ``sampled`` is the figure that rows are ranked by with its error over test
    examples and seeds, and the column beside which it stands in the CSV. ``axis`` names it in the figure, where it is
    drawn times ``factor``.
    """

    ranking: Mapping[str, Column]
    costs: Mapping[str, Column]
    by_task: str
    cells: Callable[[Row], list[str]]
    sampled: tuple[str, Column]
    units: str
    axis: str
    factor: float


COSTS: Mapping[str, Column] = {
    "KL": Column(lambda row: row.kl, ".3f"),
    "cross-entropy": Column(lambda row: row.cross_entropy, ".3f"),
    "distance": Column(lambda row: row.distance, ".2f"),
    "seconds": Column(lambda row: row.seconds, ".3g"),
    "search": Column(lambda row: row.search_seconds, ".3g"),
    "passes": Column(lambda row: row.passes, ".0f"),
    "MiB": Column(lambda row: row.memory, ".0f"),
}
WITH_ERROR = ("mean", "gain", "to best", "to # above", "KL", "cross-entropy")
"""Columns that have an error of their own."""
OF_EXAMPLES = Columns(
    ranking={
        "mean": Column(lambda row: row.mean, ".1f", 100),
        "gain": Column(lambda row: row.gain, ".2f"),
        "to best": Column(lambda row: row.to_best, "+.1f", 100, "best"),
        "to # above": Column(lambda row: row.to_above, "+.1f", 100, "above"),
    },
    costs=COSTS,
    by_task="test accuracy (%)",
    cells=lambda row: [f"{100 * value:.1f}" for value in row.accuracy],
    sampled=("mean", Column(lambda row: row.sampled, ".1f", 100)),
    units=(
        "mean: test accuracy in %, mean over tasks; gain: (mean − pretrained) / (experts − pretrained); to best, to # "
        "above: mean less that of the best merge and of the merge one rank above, in points; KL = KL(expert ‖ merge) "
        f"and cross-entropy in nats, means over tasks; {_COSTS}"
    ),
    axis="mean test accuracy (%)",
    factor=100,
)
"""One row of scores for an example: accuracy."""
OF_TOKENS = Columns(
    ranking={
        "perplexity": Column(lambda row: None if row.mean is None else perplexity(-row.mean.value), ".2f"),
        "gain": Column(lambda row: row.gain, ".2f"),
        "to best": Column(lambda row: row.to_best, "+.3f", 1, "best"),
        "to # above": Column(lambda row: row.to_above, "+.3f", 1, "above"),
    },
    costs={"right %": Column(lambda row: mean(row.accuracy) if row.accuracy else None, ".1f", 100), **COSTS},
    by_task="test perplexity",
    cells=lambda row: [f"{perplexity(loss):.2f}" for loss in row.losses],
    sampled=("cross-entropy", Column(lambda row: row.sampled, ".3f", -1)),
    units=(
        "ranks are by perplexity: exp of the cross-entropy of a token in nats, its mean over tasks; gain: (m − "
        "pretrained) / (experts − pretrained), m = −cross-entropy; to best, to # above: m less that of the best merge "
        "and of the merge one rank above, in nats a token; right: tokens that the model thinks likeliest; KL = "
        "KL(expert ‖ merge) of the expert's 64 likeliest classes and the rest, no larger than that of all, in nats a "
        f"token, mean over tasks; {_COSTS}"
    ),
    axis="mean test cross-entropy (nats a token)",
    factor=-1,
)
"""A row of scores for every token: perplexity."""
