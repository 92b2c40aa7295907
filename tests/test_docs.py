"""Tables of methods in docs/suites.md are those that docs/results keep, of the suites as they are shipped."""

import json
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from merging import suites
from merging.commands.compare import parse, read_kept

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SHIPPED = sorted(
    path.name for path in RESULTS.iterdir() if path.name in suites.SUITES and (path / "compare.json").is_file()
)


def rows(suite):
    return json.loads((RESULTS / suite / "compare.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("name", SHIPPED)
def test_kept_results_are_of_the_suite_that_is_shipped(name):
    suite, folder = suites.load(name), RESULTS / name
    for row in rows(name):
        (spec,) = (spec for spec in parse([row["label"]]) if spec.label == row["label"])
        for one in spec.seeded(row["seeds"]):
            key = one.key(suite)
            assert read_kept(folder / "results" / f"{spec.method}-{key}.json", key) is not None, one.label


@pytest.mark.parametrize("name", SHIPPED)
def test_the_page_of_the_suites_shows_the_kept_tables(name):
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8").splitlines()
    table, _, _ = (RESULTS / name / "compare.md").read_text(encoding="utf-8").partition("\n## distances")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) > 10
    assert set(lines) <= set(page)


def test_the_order_of_methods_is_that_of_another_seed_of_the_build():
    gains = [
        {row["label"]: row["gain"]["value"] for row in rows(name) if row["rank"]} for name in ("mini8", "mini8-seed-1")
    ]
    pairs = [(gains[0][label], gains[1][label]) for label in gains[0]]
    found = float(kendalltau(*zip(*pairs, strict=True)).statistic)  # pyright: ignore
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    assert f"is {found:.2f} between".replace("0.", ".") in page
