"""What pages say of methods: docs/suites.md has the tables of docs/results, docs/methods.md every row."""

import json
import re
from pathlib import Path

import pytest

from merging import suites
from merging.commands.compare import parse, read_kept
from merging.methods import METHODS, POST_PROCESSINGS
from merging.task import SPLITS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SHIPPED = sorted(
    path.name for path in RESULTS.iterdir() if path.name in suites.SUITES and (path / "compare.json").is_file()
)


def rows(suite, table="compare"):
    return json.loads((RESULTS / suite / f"{table}.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("table", ["compare", "all"])
def test_kept_results_are_of_the_suite_that_is_shipped(name, table):
    suite, folder, kept = suites.load(name), RESULTS / name, rows(name, table)
    assert len(kept) > 5
    for row in kept:
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


def test_readme_shows_the_kept_means_and_gains():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = {suite: {row["label"]: row for row in rows(suite)} for suite in ("mini8", "text8")}
    found = re.findall(r"^\| `([^`]+)` \| (\d*) \| (.*) \| (.*) \| (.*) \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert len(found) > 8
    for label, seeds, *cells, published in found:
        for suite, mean, gain in (("mini8", *cells[:2]), ("text8", *cells[2:])):
            row = kept[suite][label]
            assert gain == f"{row['gain']['value']:.2f} ± {row['gain']['stderr']:.2f}"
            assert mean.split(" ± ")[0] == f"{100 * row['mean']['value']:.1f}"
            assert seeds == (str(len(row["seeds"])) if row["seeds"] else "")
            assert published == f"{row['published_gain']:.2f}"


def test_readme_shows_every_row_that_was_measured():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = {suite: {row["label"]: row for row in rows(suite, "all") if row["rank"]} for suite in ("mini8", "text8")}
    found = re.findall(r"^\| `([^`]+)` \| ((?:[^|]+ \| ){5}[^|]+) \|$", page, flags=re.MULTILINE)
    found = {label: cells.split(" | ") for label, cells in found if "–" in cells}
    assert list(found) == list(kept["mini8"])
    for label, cells in found.items():
        for suite, shown in (("mini8", cells[:3]), ("text8", cells[3:])):
            if (row := kept[suite].get(label)) is None:
                assert shown == ["–"] * 3
                continue
            gain, standing = row["gain"], row["standing"]
            assert shown[0] == f"{100 * row['mean']['value']:.1f}"
            assert shown[1] == f"{gain['value']:.2f} ± {gain['stderr']:.2f}"
            assert shown[2] == f"{standing['best']}–{standing['worst']}"


def test_the_order_of_methods_is_that_of_other_seeds_of_the_build(capsys, monkeypatch):
    """The page's own lines, run: they print the figures that the page states, and the order is the same."""
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "kendalltau" in block)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "suites.md", "exec"), {})
    found = capsys.readouterr().out.split()
    (stated,) = re.findall(r"is (\.\d+) \(0 and 1\), (\.\d+) \(0 and 2\) and (\.\d+) \(1 and 2\)", page)
    assert found == [f"0{value}" for value in stated]
    assert min(map(float, found)) >= 0.7


def source(text):
    """Numbers of papers, in their order."""
    return re.findall(r"\d{4}\.\d{5}|doi \S+\b", text)


def said_needs(row):
    default = row.needs_of(row.settings())
    words = [f"{split} for a {row.choice}" if split not in row.needs else split for split in SPLITS if split in default]
    return ("; ".join(words) or "nothing") + ", layers" * bool(row.network)


def test_the_page_of_the_methods_has_every_row_with_its_paper_and_needs():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("\n## Row by row\n")
    lines = re.findall(r"^\| `([^`]+)`(?: after a row)? \| .+ \| (.+) \| (.+) \|$", rest, flags=re.MULTILINE)
    rows = {**METHODS, **POST_PROCESSINGS}
    assert sorted(name for name, _, _ in lines) == sorted(rows)
    for name, paper, needs in lines:
        assert source(paper) == source(rows[name].paper) != [], name
        assert needs == said_needs(rows[name]), name
