"""The page: self-contained, complete, well formed, and shown by a browser without an error."""

import html.parser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from diagnostics.bound_report import main
from diagnostics.figures.numbers import number, percent, signed
from diagnostics.figures.svg import FAINT, INK, PAPER
from diagnostics.sections.table import SECTIONS as TABLE
from merging import merge
from merging.artifact import save
from merging.suites import toy

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUICK = ["--workers", "1", "--kernel", "12", "--held-out", "24", "--train", "30", "--draws", "8", "--points", "3"]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--enable-logging=stderr", "--hide-scrollbars",
)  # fmt: skip
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
    assert page.count("<svg") == 23  # 12 a merge, but one cross-risk, one of task vectors, and of one merge the λ
    files = sorted((folder / "r" / "figures").glob("*.svg"))
    assert len(files) == 23
    assert len(list((folder / "r" / "figures").glob("*.png"))) == 23
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
    shown = {n for n in before if n.startswith("terms-1")} | {"manifest.json", "mine.svg", "terms-2.png"}
    assert {p.name for p in figures.iterdir()} == shown


def test_only_figures_whose_numbers_changed_are_drawn_again(folder, tmp_path, monkeypatch):
    drawn = []
    from diagnostics.figures import style

    original = style.as_images
    monkeypatch.setattr(style, "as_images", lambda draw, name: drawn.append(name[:-2]) or original(draw, name))
    arguments = ["--merged", str(folder / "a.pt"), "--out", str(tmp_path / "r"), *QUICK]
    assert main([*arguments, "--sections", "bound", "accuracy"]) == 0
    assert drawn == ["terms"]
    assert main([*arguments, "--sections", "bound", "accuracy", "distillation"]) == 0
    assert drawn == ["terms", "ladder"]
    assert main([*arguments, "--sections", "bound"]) == 0  # the line of the measured risk is gone
    assert drawn == ["terms", "ladder", "terms"]
    for kept in (tmp_path / "r" / "cache").glob("figure-terms-1-*"):
        kept.write_text("{")
    assert main([*arguments, "--sections", "bound"]) == 0
    assert drawn == ["terms", "ladder", "terms", "terms"]


def test_every_sweep_figure_shows_the_three_readings_with_units_and_n(folder):
    text = (folder / "r" / "figures" / "sweep-1.svg").read_text(encoding="utf-8")
    for part in ("assumed-linear", "linearised", "corrected", "measured risk", "(nats)", "n = 24", "distance"):
        assert part in text


def test_numbers():
    assert number(None) == number(float("nan")) == "–"
    assert number(1234.5) == "1.23e+03"
    assert percent(0.1234) == "12.3"
    assert signed(-0.5) == "−0.500"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_a_browser_shows_it_without_a_message_and_without_sideways_scrolling(folder, page, size, tmp_path):
    probe = tmp_path / "probe.html"
    script = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script>"
    probe.write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'p'}", f"--window-size={size}", "--dump-dom"]
    original = subprocess.run(
        [*command, (folder / "r" / "report.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in original.stderr
    assert 'id="provenance"' in original.stdout
    shown = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(\d+) (\d+)</title>", shown.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])
