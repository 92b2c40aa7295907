"""Published average accuracies (%) of published suites, by method: what a run is compared with."""

from __future__ import annotations

from collections.abc import Mapping

FAMILY = (
    "published: FusionBench's experts, data and tables (arXiv 2406.03280); SAMerging: arXiv 2512.21288. Another family "
    "of experts for the same tasks (TALL-masks, TSV) has other numbers: never mix them"
)
"""Which experts the numbers belong to."""
NUMBERS: Mapping[str, Mapping[str, float]] = {
    "clip-ta8:ViT-B-32": {
        "pretrained": 48.1,
        "experts": 90.4,
        "average": 66.5,
        "task_arithmetic": 68.0,
        "ties": 72.2,
        "regmean": 82.4,
        "adamerging": 82.6,
        "iso_c": 82.8,
        "tsv_m": 83.1,
        "wudi": 84.5,
        "samerging": 87.1,
    },
    "clip-ta8:ViT-L-14": {
        "pretrained": 64.9,
        "experts": 94.3,
        "average": 80.0,
        "task_arithmetic": 80.7,
        "ties": 84.0,
        "regmean": 90.4,
        "adamerging": 91.0,
    },
    "clip-tall14:ViT-B-32": {"pretrained": 56.9, "experts": 89.3},
    "clip-tall20:ViT-B-32": {"pretrained": 55.7, "experts": 89.8},
}
"""Suite -> row of a reproduction -> mean over tasks of the test accuracy, in %; where nothing is known, nothing."""


def gains(suite: str) -> dict[str, float]:
    """Return row -> published normalised gain, (row − pretrained) / (experts − pretrained) of one paper's numbers.

    Nothing where nothing but the references is known of a suite.
    """
    known = NUMBERS.get(suite, {})
    if not set(known) - {"pretrained", "experts"}:
        return {}
    room = known["experts"] - known["pretrained"]
    return {row: (value - known["pretrained"]) / room for row, value in known.items()}
