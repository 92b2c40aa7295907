"""The page: self-contained, complete, well formed, and shown by a browser without an error."""

import html.parser
import importlib.util
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from diagnostics import report as report_on
from diagnostics.bound_report import main
from diagnostics.equations import EQUATIONS
from diagnostics.figures.numbers import number, percent, signed
from diagnostics.figures.svg import FAINT, INK, PAPER
from diagnostics.folder import _theory_from, read_report
from diagnostics.page import render
from diagnostics.sections.table import serving
from merging import merge
from merging.artifact import save
from merging.suites import toy
from tests import browser as browsers
from tests.browser import Browser, violations
from tests.sequences_world import world as sequences

QUICK = ["--workers", "1", "--kernel", "12", "--held-out", "24", "--train", "30", "--draws", "8", "--points", "3"]
TABLE = serving("example")
SECTIONS = (*TABLE, "assumptions", "provenance")
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, suite = tmp_path_factory.mktemp("page"), toy.build()
    learned = merge(
        "samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=10, examples=8
    )
    save(learned, folder / "a.pt")
    save(merge("average", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources), folder / "b.pt")
    assert main(["--merged", str(folder / "a.pt"), str(folder / "b.pt"), "--out", str(folder / "r"), *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "r" / "report.html").read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """Checks nesting and collects identifiers and links."""

    def __init__(self):
        super().__init__()
        self.open, self.identifiers, self.links, self.wrong = [], [], [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.identifiers.append(value)
            if name in ("href", "xlink:href", "src") and value:
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_well_formed_and_self_contained(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.wrong
    assert not tags.open
    assert len(set(tags.identifiers)) == len(tags.identifiers)
    assert set(SECTIONS) < set(tags.identifiers)
    for link in tags.links:
        assert link == "data:," or (link.startswith("#") and link[1:] in tags.identifiers), link
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "<script" not in page


def test_sections_come_in_the_promised_order(page):
    places = [page.index(f'id="{name}"') for name in SECTIONS]
    assert places == sorted(places)
    assert page.index('class="verdict"') < places[0]


def test_figures_use_the_pages_ink_and_files_are_black_on_white(page, folder):
    for colour in (INK, FAINT, PAPER):
        assert colour not in page
    assert page.count("<svg") == 26  # 14 a merge, but one cross-risk, kernel and task vectors, and of one merge the λ
    files = sorted((folder / "r" / "figures").glob("*.svg"))
    assert len(files) == 26
    assert len(list((folder / "r" / "figures").glob("*.png"))) == 26
    for path in files:
        root = ET.parse(path).getroot()
        assert root.get("width", "").endswith("pt")
        assert "var(" not in path.read_text(encoding="utf-8")


def test_figures_of_merges_no_longer_shown_are_removed_and_nothing_else_is(folder, tmp_path):
    shutil.copytree(folder / "r", tmp_path / "r")
    figures = tmp_path / "r" / "figures"
    arguments = ["--merged", str(folder / "a.pt"), "--out", str(tmp_path / "r"), *QUICK]
    before = {p.name for p in figures.iterdir()}
    (figures / "mine.svg").write_text("a reader's own")
    (figures / "terms-2.png").write_bytes(b"changed by somebody")
    assert main(arguments) == 0
    left = {p.name for p in figures.iterdir()}
    assert left == {n for n in before if "-2." not in n} | {"mine.svg", "terms-2.png"}
    (figures / "manifest.json").write_text("{")
    assert main([*arguments, "--sections", "accuracy"]) == 2, "a damaged manifest is named, and nothing is removed"
    assert {p.name for p in figures.iterdir()} == left
    (figures / "manifest.json").unlink()
    assert main([*arguments, "--sections", "accuracy"]) == 0
    assert {p.name for p in figures.iterdir()} == left
    assert main(arguments) == 0
    assert main([*arguments, "--sections", "bound"]) == 0
    shown = {n for n in before if n.startswith(("terms-1", "totals-1", "slack-1"))} | {
        "manifest.json",
        "mine.svg",
        "terms-2.png",
    }
    assert {p.name for p in figures.iterdir()} == shown


def test_only_figures_whose_numbers_changed_are_drawn_again(folder, tmp_path, monkeypatch):
    drawn = []
    from diagnostics.figures import style

    original = style.as_images
    monkeypatch.setattr(style, "as_images", lambda draw, name: drawn.append(name[:-2]) or original(draw, name))
    arguments = ["--merged", str(folder / "a.pt"), "--out", str(tmp_path / "r"), *QUICK]
    assert main([*arguments, "--sections", "bound", "accuracy"]) == 0
    of_bound = ["totals", "slack", "terms"]
    assert drawn == of_bound
    assert main([*arguments, "--sections", "bound", "accuracy", "distillation"]) == 0
    assert drawn == [*of_bound, "ladder"]
    drawn.clear()
    assert main([*arguments, "--sections", "bound"]) == 0  # the line of the measured risk is gone
    assert drawn == ["totals", "terms"]
    for kept in (tmp_path / "r" / "cache").glob("figure-terms-1-*"):
        kept.write_text("{")
    assert main([*arguments, "--sections", "bound"]) == 0
    assert drawn == ["totals", "terms", "terms"]


def test_every_sweep_figure_shows_what_moves_with_units_and_n(folder):
    text = (folder / "r" / "figures" / "sweep-1.svg").read_text(encoding="utf-8")
    for part in ("measured risk", "risk of fˡⁱⁿ", "(nats)", "n = 24", "distance"):
        assert part in text


def test_numbers():
    assert number(None) == number(float("nan")) == "–"
    assert number(1234.5) == "1.23e+03"
    assert percent(0.1234) == "12.3"
    assert signed(-0.5) == "−0.500"


def texts(page):
    """The page's text, without tags and without what is meant to stay as it is."""
    page = re.sub(r"<(code|style|title|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", "|", page)


RAW = re.compile(r"(?<![^\WΣΠ∇])[^\W\d_]\u0302?[_^]\w")
"""An index that was not set: one letter, a sign, an index."""


def test_no_index_is_shown_raw(page):
    assert not RAW.findall(texts(page))
    assert page.count("<sub>") > 20
    assert RAW.findall("at θ_0, f^lin")
    assert not re.search(r'(?:title|aria-label)="[^"]*[^\W\d_][_^]0', page)


def test_every_table_has_a_caption_and_every_head_its_scope(page):
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) > 20
    for table in tables:
        assert re.match(r"<table[^>]*>\s*<caption>.{10,}?</caption>", table, re.DOTALL), table[:200]
        assert len(re.findall(r"<th\b", table)) == table.count('scope="col"') + table.count('scope="row"')
        assert table.count("<thead>") == table.count("<tbody>") == 1
        rows = re.findall(r"<tr[^>]*>(<t.)", table.split("<tbody>")[1])
        assert rows
        assert set(rows) == {"<th"}, "the first cell names its row"
    heads = re.findall(r"<tr[^>]*>.*?</tr>", tables[0], re.DOTALL)
    assert len({len(re.findall(r"<t[hd]\b", row)) for row in heads}) == 1


def test_every_section_explains_its_equations_and_numbers_lead_to_them(page):
    for name, section in TABLE.items():
        if section.how:
            start = page.index(f'<h2 id="{name}">')
            assert '<details class="how">' in page[start : start + 400], name
    for equation in {EQUATIONS[n] for section in TABLE.values() for n in section.how}:
        assert page.count(f'id="eq-{equation.number}"') == 1
        assert f"docs/theory.md, section {equation.section}" in page
    link = re.search(r'<a class="eq" href="#eq-14" title="([^"]+)">', page)
    assert link is not None
    assert link[1].startswith("An upper limit on a weighted mean")


def test_links_lead_to_the_theory_from_a_folder_of_the_same_checkout(folder):
    report, root = read_report(folder / "r" / "report.json"), Path(__file__).resolve().parents[2]
    assert "theory.md#" not in render(report, {})
    assert _theory_from(folder) == ""
    assert _theory_from(root / "report") == "../docs/theory.md"
    linked = render(report, {}, "../docs/theory.md")
    assert 'href="../docs/theory.md#5-theorem-2-the-single-merged-model"' in linked


def test_a_comparison_shows_tasks_worst_first_and_no_rank_correlation_of_two(page, folder):
    report = read_report(folder / "r" / "report.json")
    assert report.comparison is not None
    part = page[page.index('id="comparison"') : page.index('id="diagnosis"')]
    losses = {row.task: row.risk.value for row in report.comparison.tasks}
    worst = sorted(losses, key=losses.__getitem__, reverse=True)
    assert worst != list(report.tasks) or len(worst) < 3
    table = re.findall(r"<table.*?</table>", part, re.DOTALL)[1]
    assert re.findall(r'<th scope="row">(\w+)</th>', table) == worst
    assert "circular" in part
    assert "Kendall τ" not in part
    assert all(ranking.agreement is None for ranking in report.comparison.rankings)


def axe():
    """The source of axe-core, of the file that AXE names or of a package that ships it; None without either."""
    spec = importlib.util.find_spec("axe_core_python")
    inside = [Path(place) / "axe.min.js" for place in (spec.submodule_search_locations or ())] if spec else []
    found = [path for path in (Path(os.environ.get("AXE", "axe.min.js")), *inside) if path.is_file()]
    return found[0].read_text(encoding="utf-8") if found else None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browsers.PATH is None:
        pytest.skip("no Chromium here")
    shown = Browser(tmp_path_factory.mktemp("profile"))
    yield shown
    shown.close()


WIDER = "document.documentElement.scrollWidth - innerWidth"
BOXES = """[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1).map(
    b => [getComputedStyle(b).overflowX, getComputedStyle(b).backgroundImage.includes('gradient')])"""
SHOWN = "[...document.querySelectorAll('details:not([open]) > :not(summary)')].map(e => e.checkVisibility())"


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_scrolls_sideways_but_boxes_that_show_it(folder, browser, width):
    browser.open(folder / "r" / "report.html", width)
    assert browser.evaluate(WIDER) <= 0
    boxes = browser.evaluate(BOXES)
    assert boxes or width > 390
    assert all(box == ["auto", True] for box in boxes)
    assert not browser.messages


def test_on_paper_everything_is_open_and_nothing_is_cut_off(folder, browser):
    browser.open(folder / "r" / "report.html", 688)  # A4 less its margins, in pixels
    assert not any(browser.evaluate(SHOWN)), "closed on a screen"
    browser.open(folder / "r" / "report.html", 688, media="print")
    shown = browser.evaluate(SHOWN)
    assert len(shown) > 5
    assert all(shown)
    right = (
        "Math.max(...[...document.querySelectorAll('table, figure, svg, p')].map(e => e.getBoundingClientRect().right))"
    )
    assert browser.evaluate(right) <= 688
    assert browser.printed().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(folder, browser, scheme):
    source = axe()
    if source is None:
        pytest.skip("no axe-core here")
    browser.open(folder / "r" / "report.html", 1400, scheme=scheme)
    # axe judges no contrast before a gradient, and does not look into closed details
    browser.evaluate("document.querySelectorAll('.scroll').forEach(e => { e.style.backgroundImage = 'none' })")
    browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    browser.evaluate("document.querySelectorAll('svg').forEach(e => { e.replaceChildren() })")  # pictures, with a name
    assert violations(browser, source) == []
    if scheme == "dark":
        return
    browser.evaluate("document.querySelector('caption').style.color = 'var(--line)'")
    browser.evaluate("document.querySelector('svg').removeAttribute('aria-label')")
    found = {line.split(":")[0] for line in violations(browser, source)}
    assert found == {"color-contrast", "svg-img-alt"}, "what is wrong is seen"


@pytest.fixture(scope="module")
def page_of_sequences(tmp_path_factory):
    suite = sequences()
    return report_on(merge("average", suite), suite).save(tmp_path_factory.mktemp("sequences") / "r")


def test_a_page_of_sequences_is_well_formed(page_of_sequences):
    tags = Tags()
    tags.feed(page_of_sequences.read_text(encoding="utf-8"))
    assert not tags.wrong
    assert not tags.open
    assert {*serving("position"), "left-out", "assumptions", "provenance"} <= set(tags.identifiers)
    assert all(link == "data:," or link[1:] in tags.identifiers for link in tags.links)


@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_of_sequences_fits_and_axe_finds_nothing_wrong(page_of_sequences, browser, width):
    browser.open(page_of_sequences, width)
    assert browser.evaluate(WIDER) <= 0
    assert all(box == ["auto", True] for box in browser.evaluate(BOXES))
    if (source := axe()) is None:
        return
    for query in (
        "'.scroll').forEach(e => { e.style.backgroundImage = 'none' })",
        "'details').forEach(e => { e.open = true })",
        "'svg').forEach(e => { e.replaceChildren() })",
    ):
        browser.evaluate(f"document.querySelectorAll({query}")
    assert violations(browser, source) == []
